"""What tests of the configuration share."""

import pytest

from mg2l import cli


def refusal(capsys, *argv):
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(list(argv))
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err
