"""Finding files, and writing them whole."""

from __future__ import annotations

import pytest

from mmtune.errors import UserError
from mmtune.files import locate


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
