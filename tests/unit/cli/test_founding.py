"""The founding of a cluster: drawn once, written once, and never used to replace a directory that was lost."""

from pathlib import Path

import pytest

from streamq.broker.config import parse_config
from streamq.cli.__main__ import main
from streamq.cli.founding import VOTERS_MAX, config_text, draw_founding, load_founding
from streamq.cli.local_cluster import LocalCluster
from streamq.model.errors import AlreadyExistsError, NotFoundError, RefusedError
from streamq.storage.identity import load_identity


def brokers(number: int) -> list[tuple[str, str, int, str]]:
    return [(f"b{i}", "127.0.0.1", 7700 + i, f"rack-{i}") for i in range(number)]


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
def test_the_first_brokers_are_voters_under_number_1(number: int) -> None:
    founding = draw_founding(brokers(number))
    assert founding.voters.number == 1
    assert [voter.broker for voter in founding.voters.voters] == [f"b{i}" for i in range(min(number, VOTERS_MAX))]
    assert len({broker.incarnation for broker in founding.brokers}) == number
    assert draw_founding(brokers(number)).cluster != founding.cluster


def test_ids_and_addresses_do_not_repeat() -> None:
    for twice in ([("a", "h", 1, ""), ("a", "h", 2, "")], [("a", "h", 1, ""), ("b", "h", 1, "")], []):
        with pytest.raises(RefusedError):
            draw_founding(twice)


def test_a_founding_is_read_back(tmp_path: Path) -> None:
    founding = draw_founding(brokers(3))
    founding.write(tmp_path / "f.json")
    assert load_founding(tmp_path / "f.json") == founding
    (tmp_path / "f.json").write_text('{"cluster": "00", "brokers": []}')
    with pytest.raises(RefusedError):
        load_founding(tmp_path / "f.json")


def test_configurations_survive_any_path(tmp_path: Path) -> None:
    [broker] = draw_founding([("b1", "10.0.0.1", 7700, 'a"b')]).brokers
    config = parse_config(config_text(broker, data_directory='/data/"quoted" \\ ü', listen="0.0.0.0"), source="test")
    assert config.data_directory == '/data/"quoted" \\ ü'
    assert config.address == ("10.0.0.1", 7700)
    assert config.rack == 'a"b'


def test_a_local_cluster_is_founded_once(tmp_path: Path) -> None:
    cluster = LocalCluster.open_or_found(tmp_path, brokers=3, port=17900)
    identities = [load_identity(broker.data) for broker in cluster.brokers]
    assert len({identity.cluster for identity in identities}) == 1
    assert [identity.broker for identity in identities] == ["b1", "b2", "b3"]
    assert {identity.first_voters for identity in identities} == {cluster.founding.voters}
    again = LocalCluster.open_or_found(tmp_path, brokers=None, port=None)
    assert again.founding == cluster.founding
    assert LocalCluster.open_or_found(tmp_path, brokers=3, port=17900).founding == cluster.founding
    for number, port in ((5, None), (None, 17901)):
        with pytest.raises(AlreadyExistsError):
            LocalCluster.open_or_found(tmp_path, brokers=number, port=port)


def test_an_interrupted_founding_goes_on_with_what_was_drawn(tmp_path: Path) -> None:
    founding = draw_founding(brokers(2))
    tmp_path.joinpath("b0").mkdir()
    founding.write(tmp_path / "cluster.json")
    cluster = LocalCluster.open_or_found(tmp_path, brokers=None, port=None)
    assert [load_identity(b.data).incarnation.hex() for b in cluster.brokers] == [b.incarnation for b in founding.brokers]


def test_a_lost_directory_is_not_founded_again(tmp_path: Path) -> None:
    """P-31: its incarnation is gone with it."""
    cluster = LocalCluster.open_or_found(tmp_path, brokers=1, port=17900)
    [broker] = cluster.brokers
    for path in broker.data.iterdir():
        path.unlink()
    LocalCluster.open_or_found(tmp_path, brokers=None, port=None)
    with pytest.raises(NotFoundError):
        load_identity(broker.data)


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError) as refused:
        LocalCluster.open_or_found(tmp_path, brokers=None, port=None)
    assert refused.value.code == "wrong_directory"
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.txt"]


def test_a_wrong_setting_is_refused_before_anything_counts(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        LocalCluster.open_or_found(tmp_path / "c", brokers=1, port=17900, settings=["silence_timeout = 1.0"])
    assert "silence_timeout_s" in refused.value.hint


def test_several_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cluster init` and, on each machine once, `broker init`."""
    out, data = tmp_path / "founding", tmp_path / "data"
    arguments = ["cluster", "init", "--directory", str(out), "--data-directory", f"{data}/{{broker}}"]
    arguments += ["--broker", "b1=10.0.0.1:7700/r1", "--broker", "b2=10.0.0.2:7701"]
    assert main(arguments) == 0
    assert main(arguments) == 7
    assert main(["broker", "init", "--config", f"{out}/b1.toml", "--founding", f"{out}/founding.json"]) == 0
    assert main(["broker", "init", "--config", f"{out}/b1.toml", "--founding", f"{out}/founding.json"]) == 7
    identity = load_identity(data / "b1")
    assert identity.broker == "b1"
    assert [(voter.host, voter.port) for voter in identity.first_voters.voters] == [("10.0.0.1", 7700), ("10.0.0.2", 7701)]
    assert "streamq broker run" in capsys.readouterr().out
