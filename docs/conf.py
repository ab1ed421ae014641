"""How Sphinx builds the site: `sphinx-build -W --keep-going -b html docs site`.

At every build the pages under reference/generated/ are written from the code: one per package, one for the public API
(`wsi_dbps.__all__`), and one for the command line.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import sphinx.pycode.parser
import typer.main
import wsi_dbps_cli.main
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import wsi_dbps
from wsi_dbps.core.options import OptionType, option_types

DOCS = Path(__file__).parent
GENERATED = DOCS / "reference" / "generated"

# ---- what Sphinx reads

project = "wsi-dbps"
html_title = "wsi-dbps"
html_theme = "furo"
html_theme_options = {"footer_icons": []}
html_copy_source = False
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
smartquotes = False  # or --option gets a dash
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_preserve_defaults = True
add_module_names = False
suppress_warnings = ["ref.python"]  # two packages may each have a class of one name
python_use_unqualified_type_names = True


sphinx.pycode.parser.ast_unparse = ast.unparse  # Sphinx's own cannot read f-strings


def setup(app: Sphinx) -> None:
    """Called by Sphinx before it looks for pages."""
    write_generated_pages()
    app.connect("source-read", include_from_the_root)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon reads its sections
    app.connect("autodoc-process-signature", short_signature)
    app.connect("build-finished", refuse_anything_from_elsewhere)


# ---- pages written from the code


def write_generated_pages() -> None:
    """Write every page of reference/generated/, and remove those that are no longer wanted."""
    pages = {"api": public_api(), "commands": command_line(), **packages()}
    GENERATED.mkdir(parents=True, exist_ok=True)
    for old in GENERATED.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = GENERATED / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not read again
            path.write_text(text, encoding="utf-8")


def headed(title: str, line: str = "=") -> str:
    """A heading in reStructuredText."""
    return f"{title}\n{line * len(title)}\n\n"


def public_api() -> str:
    """A page of every name in `wsi_dbps.__all__`, by kind."""
    kinds = {"Functions": "function", "Classes": "class", "Errors": "exception", "Other": "data"}
    sections = dict.fromkeys(kinds, "")
    for name in getattr(wsi_dbps, "__all__", ()):
        found = getattr(wsi_dbps, name)
        is_error = inspect.isclass(found) and issubclass(found, Exception)
        kind = "Errors" if is_error else "Classes" if inspect.isclass(found) else "Functions"
        kind = kind if callable(found) else "Other"
        sections[kind] += f".. auto{kinds[kind]}:: wsi_dbps.{name}\n\n"
    text = headed("Public API") + "What ``import wsi_dbps`` offers.\n\n"
    return text + "".join(headed(kind, "-") + names for kind, names in sections.items() if names)


def packages() -> dict[str, str]:
    """A page for each package of `wsi_dbps`, with all its modules, and one for the modules at the top."""
    pages: dict[str, str] = {}
    for module in sorted(pkgutil.walk_packages(wsi_dbps.__path__, "wsi_dbps."), key=lambda module: module.name):
        top = module.name.split(".")[1]
        page = top if hasattr(importlib.import_module(f"wsi_dbps.{top}"), "__path__") else "top"
        if page not in pages:
            pages[page] = headed(f"wsi_dbps.{page}" if page != "top" else "wsi_dbps")
        pages[page] += "" if module.name == f"wsi_dbps.{page}" else headed(module.name, "-")
        pages[page] += f".. automodule:: {module.name}\n\n"
    return {f"package-{page}": text for page, text in pages.items()}


def command_line() -> str:
    """A page of every command with its arguments and options, in the words and the groups of `--help`."""
    text = headed("Command line") + "Every command, as ``wsi-dbps COMMAND --help`` prints it.\n\n"
    commands: dict[str, Any] = typer.main.get_command(wsi_dbps_cli.main.app).commands  # type: ignore[attr-defined]
    for group, modules in wsi_dbps_cli.main.COMMANDS.items():
        names = [module.__name__.rpartition(".")[2] for module in modules]
        text += headed(group, "~") + "".join(one_command(name, commands[name]) for name in names)
    return text


def one_command(name: str, command: Any) -> str:
    """The section of one command."""
    context = command.context_class(command, info_name=name)
    text = headed(f"wsi-dbps {name}", "-") + f".. program:: wsi-dbps {name}\n\n"
    text += f"::\n\n    wsi-dbps {name} {' '.join(command.collect_usage_pieces(context))}\n\n"
    text += escaped(inspect.cleandoc(command.help or "")) + "\n\n"
    for parameter in command.params:
        if shown := parameter.get_help_record(context):  # not that of a hidden option
            text += f".. option:: {shown[0].replace(' / ', ', ')}\n\n    {escaped(shown[1])}\n\n"
    return text


# ---- changes on the way


def escaped(text: str) -> str:
    """Plain text with `code` in single backticks as reStructuredText that says the same."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        rf"\ ``{part}``\ " if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", part) for i, part in enumerate(parts)
    )


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let a docstring say what it says as plain text: no markup but `code`; drawings and examples stay as they are."""
    paragraphs = "\n".join(lines).split("\n\n")
    if declared := options_of(obj):
        paragraphs.append("Args:" + "".join(f"\n    {name}: {option.help}" for name, option in declared.items()))
    for i, paragraph in enumerate(paragraphs):
        if re.search(r"\S {3,}\S|[├└]", paragraph):
            paragraphs[i] = "::\n\n" + indent(dedent(paragraph), "    ")
        else:
            text, *example = re.split(r"(?m)^(?=\s*>>>)", paragraph, maxsplit=1)
            paragraphs[i] = escaped(text) + "".join(example)
    if what in {"attribute", "data", "property"}:
        paragraphs.insert(0, "..")  # an empty comment, or napoleon takes the text before a colon for a type
    lines[:] = "\n\n".join(paragraphs).split("\n")


def short_signature(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, str] | None:
    """The signature of an options class without its annotations, which hold the help texts."""
    if not options_of(obj):
        return None
    parameters = inspect.signature(obj).parameters.values()
    return str(
        inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters])
    ), ""


def options_of(obj: object) -> dict[str, OptionType]:
    """What the fields of an options class say; nothing for anything else."""
    return option_types(obj) if inspect.isclass(obj) and obj.__name__.endswith("Options") else {}


def include_from_the_root(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace `<!-- include NAME -->` by a file outside docs/, its links turned to those of the site."""
    for name in re.findall(r"<!-- include (\S+) -->", source[0]):
        text = (DOCS.parent / name).read_text(encoding="utf-8").replace("](docs/", "](")
        text = re.sub(r"\[([^]]*)\]\((?!https?:)([^)#]+)([^)]*)\)", link_of_the_site, text)
        source[0] = source[0].replace(f"<!-- include {name} -->", text)
        app.env.note_dependency(str(DOCS.parent / name))


def link_of_the_site(link: re.Match[str]) -> str:
    """The same link to a page of the site (CHANGELOG.md is changelog.md there); plain text where there is no page."""
    text, target, anchor = link.groups()
    pages = [name for name in (target, target.lower()) if (DOCS / name).is_file()]
    return f"[{text}]({pages[0]}{anchor})" if pages else text


ELSEWHERE = r"""(<(script|img|iframe|link rel="stylesheet")[^>]+(src|href)="|url\(["']?)(https?:)?//|@import"""


def refuse_anything_from_elsewhere(app: Sphinx, error: Exception | None) -> None:
    """The site must work offline: an error where a page loads a script, style, font or picture from another server."""
    pages = [] if error else [path for path in Path(app.outdir).rglob("*") if path.suffix in {".html", ".css"}]
    for path in pages:
        if found := re.search(ELSEWHERE, path.read_text(encoding="utf-8")):
            raise SphinxError(f"{path}: loads something from another server: {found[0]}")
