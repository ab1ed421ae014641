"""Names and messages stay text on the contact sheet."""

from wsi_dbps.tiling.contact_sheet import write_contact_sheet
from wsi_dbps.tiling.outcomes import Failed
from wsi_dbps.tiling.overview import add_to_table


def test_markup_in_ids_and_messages_is_text_on_the_contact_sheet(tmp_path) -> None:
    said = "<script>alert(1)</script>.svs: <img src=x onerror=y> no such file"
    add_to_table(tmp_path, [Failed("a&amp;b", said)])
    page = write_contact_sheet(["a&amp;b", "<i>c</i>"], tmp_path).read_text(encoding="utf-8")
    assert "a&amp;amp;b" in page
    assert "&lt;i&gt;c" in page
    assert "&lt;script&gt;alert(1)" in page
    for markup in ("<script", "<img", "<i>"):
        assert markup not in page
