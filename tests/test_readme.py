"""The README says what is so."""

import ast
import dataclasses
import pathlib
import re

import pytest

import a3c_pong

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def tables(title):
    """The tables of a section, lists of rows, which are lists of cells."""
    found = re.findall(r"(?:^\|.*\n)+", section(title) + "\n", re.M)
    rows = [[line.strip("|").split("|") for line in table.splitlines()[2:]] for table in found]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


# ------------------------------------------------------------------------ the chapter, part by part


def line_of(file, name):
    """The line on which a name is defined; None if it is not.

    name: "Class", "function", "Class.attribute", "Class.method", and after a function's name a
    dot and a name that is assigned in it, self.x or x; after a class's name, in its __init__.
    """
    nodes = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        node = next((node for node in nodes if part in names_of(node)), None)
        if node is None:
            return None
        if isinstance(node, ast.FunctionDef):
            nodes = list(ast.walk(node))[1:]
        else:
            nodes = getattr(node, "body", [])
            inits = [init for init in nodes if "__init__" in names_of(init)]
            nodes = nodes + [inner for init in inits for inner in ast.walk(init)]
    return node.lineno


def names_of(node):
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    targets = [t for target in targets for t in getattr(target, "elts", [target])]
    return [t.attr if isinstance(t, ast.Attribute) else getattr(t, "id", None) for t in targets]


def definitions(row):
    """(file, name) of each name that a row of the mapping table says is defined somewhere."""
    owner = ""  # the class or function of the name before
    for part in row[1].split(";"):
        file, names = re.fullmatch(r"\s*(?:`([\w/]+\.py)`:)?(.*)", part).groups()
        for name in re.findall(r"`([\w.]+)`", names):
            if name.startswith("."):
                name = f"{owner}{name}"
            owner = name.rpartition(".")[0]
            yield file or "a3c_pong.py", re.sub(r"^AC\.", "ActorCriticNetwork.", name)


CHAPTER, METHODS = tables("The chapter, part by part")
# names of the chapter's code, in its order
PARTS = """game_env num_workers max_global_episodes global_network_scope global_iteration_update
gamma beta lr_actor lr_critic preprocessing_image ActorCriticNetwork s a_his a_prob v td c_loss
log_prob exp_v entropy a_loss a_grads c_grads _build_net update_global pull_global choose_action
Worker work buffer_r session actor_train critic_train acn_global workers coordinator
worker_threads""".split()


@pytest.mark.parametrize("row", CHAPTER + METHODS, ids=lambda row: row[0])
def test_each_part_of_the_chapter_is_defined_where_the_table_says(row):
    found = list(definitions(row))
    assert found
    for file, name in found:
        assert line_of(file, name), f"{file} does not define {name}"


@pytest.mark.parametrize("table", [CHAPTER, METHODS], ids=["a3c", "others"])
def test_the_script_has_the_parts_in_the_chapters_order(table):
    lines = [
        (line_of(file, name), name)
        for row in table
        for file, name in definitions(row)
        if file == "a3c_pong.py"
    ]
    assert len(lines) > 3
    assert lines == sorted(lines, key=lambda line: line[0])


def test_the_table_has_the_parts_in_the_chapters_order():
    named = [name for row in CHAPTER for name in re.findall(r"`(\w+)`", row[0])]
    assert [name for name in dict.fromkeys(named) if name in PARTS] == PARTS


def test_a_name_that_is_not_there_is_not_found():
    assert line_of("a3c_pong.py", "Worker.work.T") > line_of("a3c_pong.py", "Worker.work")
    for name in "Nothing", "Worker.nothing", "Worker.work.nothing", "Settings.nothing":
        assert line_of("a3c_pong.py", name) is None


# ---------------------------------------------------------------------------------------- the rest


def test_each_setting_has_a_meaning_and_an_origin():
    for field in dataclasses.fields(a3c_pong.Settings):
        assert re.fullmatch(r"\S.+ \[.+\]", field.metadata["help"]), field.name


def test_each_departure_has_a_reason_and_a_test_that_exists():
    (rows,) = tables("Departures from the chapter")
    assert len(rows) > 10
    for chapter, here, why, test in rows:
        assert chapter and here and why, test
        named = re.findall(r"`(test_\w+\.py)`", test)
        assert named and all((ROOT / "tests" / name).exists() for name in named), test
        code = "".join((ROOT / "tests" / name).read_text() for name in named)
        for function in re.findall(r"`(test_\w+)`", test):
            assert f"def {function}(" in code, function


def test_the_preset_table_is_the_preset():
    (rows,) = tables("The preset that wins: `--preset rally`")
    named = [option for row in rows for option in re.findall(r"`--([a-z-]+)`", row[0])]
    expected = set().union(*a3c_pong.PRESETS["rally"].values()) - {"max_steps"}
    assert sorted(named) == sorted(name.replace("_", "-") for name in expected)


def test_each_option_it_names_is_one():
    commands = {"resume", "play", "record", "evaluate", "draw", "seconds", "games", "help"}
    options = {f.name.replace("_", "-") for f in dataclasses.fields(a3c_pong.Settings)} | commands
    for name in "README.md", "cluster/README.md", "results/README.md":
        text = (ROOT / name).read_text().replace("tensorboard --logdir", "")
        assert set(re.findall(r"--([a-z]+[a-z-]*)", text)) <= options, name


def test_each_file_and_picture_it_shows_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in path or (ROOT / path).exists(), path


def test_each_entry_of_the_results_is_shown():
    shown = README + (ROOT / "results" / "README.md").read_text()
    for path in (ROOT / "results").iterdir():
        assert f"results/{path.name}" in shown or f"`{path.name}`" in shown, path.name


@pytest.mark.parametrize(
    "path, kilobytes", [("README.md", 12), ("cluster/README.md", 6), ("results/README.md", 6)]
)
def test_it_is_short(path, kilobytes):
    assert (ROOT / path).stat().st_size <= 1000 * kilobytes
