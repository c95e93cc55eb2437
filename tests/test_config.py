"""Settings: read from the environment and from files, documented, and never quoted in errors."""

import re
from pathlib import Path

import pytest

from animus.config import Settings, load_settings

DOC = Path(__file__).parent.parent / "docs" / "execution.md"


def test_every_setting_is_documented_with_its_description() -> None:
    """The table of docs/execution.md names exactly the settings that there are."""
    rows = dict(re.findall(r"^\| `ANIMUS_([A-Z_]+)` \| .* \| (.*) \|$", DOC.read_text(), re.MULTILINE))
    assert rows == {name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_a_setting_comes_from_its_variable_or_from_a_file(tmp_path: Path) -> None:
    """The variable counts before the file; a file's last line end is no part of the value."""
    (tmp_path / "url").write_text("postgresql://service:secret@db/animus\n")
    settings = load_settings({"ANIMUS_DATABASE_URL_FILE": str(tmp_path / "url"), "ANIMUS_GRPC_PORT": "0"})
    assert settings.database_url.get_secret_value() == "postgresql://service:secret@db/animus"
    assert settings.grpc_port == 0
    both = {"ANIMUS_LOG_LEVEL": "error", "ANIMUS_LOG_LEVEL_FILE": str(tmp_path / "url")}
    assert load_settings(both).log_level == "error"


def test_an_empty_path_is_none() -> None:
    """A variable that is set to nothing is as one that is not set, and never the working directory."""
    settings = load_settings({"ANIMUS_LOG_DIR": "", "ANIMUS_LOG_POLICY_FILE": ""})
    assert (settings.log_dir, settings.log_policy_file) == (None, None)
    assert load_settings({"ANIMUS_LOG_DIR": "keys"}).log_dir == Path("keys")


def test_lists_are_given_with_commas() -> None:
    """Spaces around a name are no part of it, and nothing is no name."""
    settings = load_settings({"ANIMUS_GATEWAY_ALLOWED_HOSTS": "a.example, b.example,", "ANIMUS_TLS_KEY_FILE": ""})
    assert settings.gateway_allowed_hosts == ("a.example", "b.example")
    assert settings.gateway_allowed_origins == ()
    assert settings.tls_key_file is None


def test_a_wrong_value_is_named_and_never_quoted(tmp_path: Path) -> None:
    """The error says which variable, and does not repeat what was in it."""
    with pytest.raises(ValueError, match="ANIMUS_GRPC_PORT") as found:
        load_settings({"ANIMUS_GRPC_PORT": "hunter2"})
    assert "hunter2" not in str(found.value)
    with pytest.raises(ValueError, match="ANIMUS_DATABASE_URL_FILE: No such file"):
        load_settings({"ANIMUS_DATABASE_URL_FILE": str(tmp_path / "absent")})


def test_secrets_do_not_show() -> None:
    """A setting that holds a secret prints as stars."""
    settings = load_settings({"ANIMUS_DATABASE_URL": "postgresql://a:hunter2@b/c", "ANIMUS_PAGE_TOKEN_KEY": "ab" * 32})
    assert "hunter2" not in repr(settings)
    assert "abab" not in repr(settings)
