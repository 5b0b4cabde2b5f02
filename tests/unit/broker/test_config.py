"""The broker's configuration: every setting is explained in deploy/broker.toml, every mistake is named."""

import re
import tomllib
from pathlib import Path

import pytest

from streamq.broker.config import BrokerConfig, load_config, parse_config
from streamq.model.errors import RefusedError

SAMPLE = Path(__file__).parents[3] / "deploy" / "broker.toml"
REQUIRED = 'broker = "b1"\ndata_directory = "/data"\n'


def test_the_sample_has_every_setting_with_its_default_and_a_reason() -> None:
    config = load_config(SAMPLE)
    table = tomllib.loads(SAMPLE.read_text())
    assert tuple(table) == BrokerConfig.__struct_fields__
    bare = BrokerConfig(broker=config.broker, data_directory=config.data_directory)
    assert config == bare
    for block in re.split(r"\n\n", SAMPLE.read_text()):
        for line in block.splitlines():
            if "=" in line and not line.startswith("#"):
                assert block.startswith("# "), f"{line} has no explanation"


def test_every_field_has_a_docstring_with_its_reason() -> None:
    source = Path(__file__).parents[3].joinpath("streamq", "broker", "config.py").read_text()
    for field in BrokerConfig.__struct_fields__:
        assert re.search(rf'\n    {field}: [^\n]+\n    """', source), field


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (REQUIRED + "prot = 1", ["prot", "'port'"]),
        (REQUIRED + 'port = "7700"', ["port"]),
        (REQUIRED + "port = 0", ["port"]),
        (REQUIRED + "port = 70000", ["port"]),
        (REQUIRED + "silence_timeout_s = -1.0", ["silence_timeout_s"]),
        (REQUIRED + "silence_timeout_s = nan", ["silence_timeout_s"]),
        (REQUIRED + "silence_timeout_s = 0.1", ["silence_timeout_s", "heartbeat_interval_s"]),
        (REQUIRED + "flush_bytes = 100_000_000", ["flush_bytes", "cache_bytes"]),
        (REQUIRED + "journal_file_bytes = 4096", ["journal_file_bytes"]),
        (REQUIRED + 'host = "0.0.0.0"', ["advertised_host"]),
        (REQUIRED + "[network]\nport = 1", ["network"]),
        ('broker = "b1"', ["data_directory"]),
        ('data_directory = "/data"', ["broker"]),
        ('broker = "b1"\ndata_directory = "data"', ["absolute"]),
        ('broker = "b 1"\ndata_directory = "/data"', ["broker"]),
        ("broker = ", ["TOML"]),
    ],
)
def test_a_mistake_is_refused_by_name(text: str, names: list[str]) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_config(text, source="b1.toml")
    assert refused.value.code == "bad_config"
    assert refused.value.message.startswith("b1.toml ")
    for name in names:
        assert name in refused.value.message + refused.value.hint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(RefusedError) as refused:
            load_config(path)
        assert str(path) in refused.value.message


def test_what_others_are_told() -> None:
    assert parse_config(REQUIRED, source="t").address == ("127.0.0.1", 7700)
    config = parse_config(REQUIRED + 'host = "0.0.0.0"\nadvertised_host = "b1.example"\nadvertised_port = 17700', source="t")
    assert config.address == ("b1.example", 17700)
    assert config.listens_beyond_loopback
