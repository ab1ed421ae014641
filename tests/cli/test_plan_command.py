"""`wsi-dbps plan`: what was asked, what it needs, what fits."""

import re


def test_the_command_prints_what_was_asked_and_what_fits(small_cohort, wsi_dbps, tmp_path) -> None:
    manifest, caches = small_cohort
    (tmp_path / "run.toml").write_text('[encoder]\nname = "small_gn"\ndim = 16\n[aggregator]\nnum_heads = 2\n')
    asked = ("plan", manifest, "--caches", caches, "--config", tmp_path / "run.toml", "--device", "cpu")
    code, out, err = wsi_dbps(*asked, "--vram", "2G")
    assert (code, err) == (0, "")
    assert "2G (2.00 GiB) is enough." in out
    assert re.search(r"^parameters: encoder [\d,]+, aggregator [\d,]+ \(embedding size 16\)$", out, re.M)
    code, out, err = wsi_dbps(*asked, "--vram", "6M")
    assert (code, err) == (0, "")
    assert "6M (6.0 MiB) is too little for what was asked. What fits:" in out
    proposed = re.findall(r"--set (\S+)", out)
    code, out, _ = wsi_dbps(*asked, "--vram", "6M", *(word for one in proposed for word in ("--set", one)))
    assert "is enough" in out
    code, _, err = wsi_dbps(*asked, "--vram", "1M")
    assert code == 2
    assert re.search(r"small_gn needs \S+ MiB for one patch at a time, more than the 1.0 MiB given; choose", err)
    code, _, err = wsi_dbps(*asked, "--vram", "much")
    assert (code, err) == (2, "wsi-dbps: --vram: write it as 12G or 800M, found 'much'\n")
