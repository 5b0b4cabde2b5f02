"""Where the cluster is: flag before environment before profile before default."""

from pathlib import Path

import pytest

from streamq.cli.__main__ import main
from streamq.cli.settings import Profiles, find_bootstrap, local_data_directory, new_cluster_port
from streamq.model.errors import NotFoundError, RefusedError


def test_the_order_of_what_counts(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert str(find_bootstrap(flag=None, profile=None, environment=environment)) == "127.0.0.1:7700"
    profiles = Profiles.load(environment)
    profiles.bootstraps = {"one": "one:1", "two": "two:2"}
    profiles.current = "one"
    profiles.save()
    assert str(find_bootstrap(flag=None, profile=None, environment=environment)) == "one:1"
    environment["STREAMQ_PROFILE"] = "two"
    assert str(find_bootstrap(flag=None, profile=None, environment=environment)) == "two:2"
    environment["STREAMQ_BOOTSTRAP"] = "three:3,four"
    assert str(find_bootstrap(flag=None, profile=None, environment=environment)) == "three:3,four:7700"
    assert str(find_bootstrap(flag=None, profile="one", environment=environment)) == "one:1"
    assert str(find_bootstrap(flag="[::1]:5", profile="one", environment=environment)) == "[::1]:5"


@pytest.mark.parametrize("text", ["", "host:", "host:0", "host:70000", "host:x", ":7700", ",", "a b:1"])
def test_what_is_no_address_is_refused_with_its_origin(text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        find_bootstrap(flag=text, profile=None)
    assert refused.value.message.startswith("--bootstrap")


def test_a_profile_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        find_bootstrap(flag=None, profile="nope", environment={"XDG_CONFIG_HOME": str(tmp_path)})


def test_an_empty_flag_never_means_some_other_cluster(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "STREAMQ_BOOTSTRAP": "production:7700"}
    with pytest.raises(RefusedError):
        find_bootstrap(flag="", profile=None, environment=environment)
    with pytest.raises(NotFoundError):
        find_bootstrap(flag=None, profile="", environment=environment)


def test_damaged_profiles_are_told_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "streamq" / "profiles.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(RefusedError) as refused:
        Profiles.load({"XDG_CONFIG_HOME": str(tmp_path)})
    assert str(path) in refused.value.message
    assert path.read_text() == "{"


def test_profile_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["profile", "ls"]) == 0
    assert main(["profile", "add", "a", "--bootstrap", "h:1"]) == 0
    assert main(["profile", "add", "b", "--bootstrap", "h:2"]) == 0
    assert main(["profile", "use", "b"]) == 0
    assert main(["profile", "use", "c"]) == 3
    capsys.readouterr()
    assert main(["profile", "ls", "-o", "json"]) == 0
    assert '{"profile":"b","bootstrap":"h:2","current":true}' in capsys.readouterr().out
    assert main(["profile", "rm", "b"]) == 0
    assert Profiles.load({"XDG_CONFIG_HOME": str(tmp_path)}).current == ""


def test_places_for_local_clusters(tmp_path: Path) -> None:
    assert local_data_directory("/x", {"STREAMQ_DATA": "/y"}) == Path("/x")
    assert local_data_directory(None, {"STREAMQ_DATA": "/y"}) == Path("/y")
    assert local_data_directory(None, {"HOME": "/home/me"}) == Path("/home/me/.local/share/streamq/local")
    assert new_cluster_port({}) == 7700
    assert new_cluster_port({"STREAMQ_PORT": "9000"}) == 9000
    with pytest.raises(RefusedError):
        new_cluster_port({"STREAMQ_PORT": "high"})
