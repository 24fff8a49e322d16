"""The recipes that come with the package, each with a name such as "gn/faster_rcnn_r50_fpn_gn_2x_coco"."""

from difflib import get_close_matches
from pathlib import Path

SUFFIX = ".yml"
_PACKAGE = Path(__file__).resolve().parents[1]


def recipes_folder() -> Path:
    """Return the folder of the recipes: inside an installed package, or beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of all complete recipes, without the partial configs that they inherit."""
    folder = recipes_folder()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"*/*{SUFFIX}"))
    return sorted(name for name in names if not name.startswith("_"))


def find_config(name: str | Path, folder: Path = Path()) -> Path:
    """Return the path of a config that is given as a path, relative to `folder`, or as the name of a recipe.

    A file that exists takes precedence. A recipe's suffix may be omitted. The result may not exist.
    """
    path = folder / name
    recipe = recipes_folder() / f"{Path(name).as_posix().removesuffix(SUFFIX)}{SUFFIX}"
    return recipe if not path.exists() and recipe.is_file() else path


def suggest_recipe(name: str | Path) -> str:
    """Return a hint for a config that was not found: "; did you mean the recipe ...?", or an empty string."""
    wanted = Path(name).with_suffix("").as_posix()
    names = recipe_names()
    by_file = {recipe.rpartition("/")[2]: recipe for recipe in names}
    nearest = get_close_matches(wanted, names, n=1) or get_close_matches(wanted.rpartition("/")[2], by_file, n=1)
    return f"; did you mean the recipe {by_file.get(nearest[0], nearest[0])}?" if nearest else ""
