"""Modules that env files name register families."""

import pytest

from mg2l.config.files import load_config
from mg2l.config.saved import config_from_yaml, config_to_yaml
from mg2l.core import schema

FAMILY = """
from dataclasses import dataclass
from mg2l.envs import EnvConfig, registry

@dataclass
class {name}Config(EnvConfig):
    \"\"\"A family that is never built.\"\"\"

registry.register("{name}", {name}Config, None)
"""


def test_a_file_beside_the_env_file_registers_its_family(tmp_path):
    (tmp_path / "own.py").write_text(FAMILY.format(name="own_by_file"))
    (tmp_path / "own.yaml").write_text("family: own_by_file\nmodule: own.py\n")
    config = load_config(env=str(tmp_path / "own.yaml"))
    text = config_to_yaml(config)
    assert f"module: {tmp_path / 'own.py'}" in text
    (tmp_path / "config.yaml").write_text(text)
    assert config_from_yaml(tmp_path / "config.yaml") == config
    assert load_config(env=str(tmp_path / "own.yaml")) == config  # imported once


def test_a_module_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "own_family_module.py").write_text(FAMILY.format(name="own_by_name"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.yaml").write_text("family: own_by_name\nmodule: own_family_module\n")
    assert "module: own_family_module\n" in config_to_yaml(
        load_config(env=str(tmp_path / "own.yaml"))
    )


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("3", "", "module must be a Python file or module, got 3"),
        ("absent.py", "", "absent.py cannot be imported: .*there is no such file"),
        ("no_such_module_here", "", "cannot be imported: ModuleNotFoundError"),
        ("own.py", "import sys; sys.exit(3)", "own.py cannot be imported: SystemExit: 3"),
        ("own.py", "1 / 0", "own.py cannot be imported: ZeroDivisionError: division by zero"),
        ("own.py", "", "unknown env 'unregistered'"),
    ],
)
def test_a_module_that_does_not_register_the_family_is_refused(tmp_path, module, content, message):
    (tmp_path / "own.py").write_text(content)
    (tmp_path / "own.yaml").write_text(f"family: unregistered\nmodule: {module}\n")
    with pytest.raises(schema.ConfigError, match=message):
        load_config(env=str(tmp_path / "own.yaml"))
