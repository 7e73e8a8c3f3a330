"""Finding files, and writing them whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.common.files import claim_folder, locate, read_json, write_json


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a.b", "no_such_package_at_all.x", "a b"])
@pytest.mark.parametrize("inner", ["", "/", "/x.gguf"])
def test_a_package_that_no_one_can_import(name: str, inner: str) -> None:
    with pytest.raises(UserError, match="write package:NAME/file"):
        locate(f"package:{name}{inner}")


def test_a_package_that_is_not_installed_and_a_file_it_lacks() -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        locate("package:no_such_package/x")
    with pytest.raises(UserError, match="holds no nope"):
        locate("package:mmtune/nope")
    with pytest.raises(UserError, match="not installed"):
        locate("package:this/x")  # a module, not a package


@pytest.mark.parametrize("scheme", ["package:numpy/", "cache:"])
@pytest.mark.parametrize("inner", ["../mmtune/py.typed", "core/../../x", "..", "/etc/passwd", "/", "//etc/passwd"])
def test_a_path_leads_out_of_neither_a_package_nor_the_cache(scheme: str, inner: str) -> None:
    with pytest.raises(UserError, match=f"{scheme}{inner}: leads out of .*; write the path itself"):
        locate(scheme + inner)


def test_a_folder_is_made_where_it_can_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim_folder(tmp_path / "a" / "b", "--out")
    claim_folder(tmp_path / "a" / "b", "--out")
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/none"), tmp_path / "file" / "below", tmp_path / "file"):
        with pytest.raises(UserError, match=f"--out {place}: "):
            claim_folder(place, "--out")
        assert main(["quickstart", "--out", str(place)]) == 2
        assert f"--out {place}: " in capsys.readouterr().err


def test_text_that_utf8_cannot_write_is_written_as_json_escapes(tmp_path: Path) -> None:
    value = {"ok": "é 😀", "half": "a\ud83d", "escape": "\\ud83d"}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_a_message_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "no\x1b[2Jfile.json"]) == 2
    assert "no␛[2Jfile.json" in capsys.readouterr().err
