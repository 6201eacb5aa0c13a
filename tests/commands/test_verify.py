"""`cachestore verify`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def built(command, store, reviews):
    assert command("build", reviews, "--column", "text", "--encoder", "hashing", "--store", store).code == 0
    return store


def flip(store):
    """Change a bit of a vector."""
    (path,) = (store / "shards").rglob("*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def test_a_sound_store_passes(command, built):
    done = command("verify", "--read-data", "--store", built)
    assert done.code == 0
    assert "no damage found" in done.out
    assert "1 shard, 4 vectors looked for" in done.out
    found = command("verify", "reviews", "--store", built, "--json").json
    assert found["damage"] == found["notices"] == 0
    assert (found["manifests"], found["vectors"], found["bytes_read"]) == (1, 4, 0)


def test_damage_is_listed_with_what_to_do_and_ends_with_4(command, built):
    path = flip(built)
    assert command("verify", "--store", built).code == 0
    done = command("verify", "--read-data", "--store", built)
    assert done.code == 4
    assert f"damage: shards/{path.parent.name}/{path.name}: " in done.out
    assert "Run `cachestore repair`" in done.out
    assert "damage: reviews@1: " in done.out
    found = command("verify", "--read-data", "--store", built, "--json")
    assert found.code == 4
    assert {finding["kind"] for finding in found.json["findings"]} == {"shard", "vector"}
    assert all(set(finding) == {"severity", "kind", "what", "detail", "advice"} for finding in found.json["findings"])
    assert found.json["damage"] == 2


def test_a_damaged_index_is_damage_not_an_error(command, built):
    (built / "index" / "data.mdb").write_bytes(b"?" * 9000)
    done = command("verify", "--store", built)
    assert done.code == 4
    assert "damage: index: " in done.out
    assert "repair" in done.out


def test_rows_are_encoded_again_by_an_encoder_given_or_packaged(command, built, tmp_path):
    found = command("verify", "--reencode", "3", "--store", built, "--json").json
    assert found["reencoded"]["rows"] == 3
    assert found["reencoded"]["least"] > 0.9999
    config = tmp_path / "config.yaml"
    config.write_text(
        "input_features: [{name: text, type: text, encoder: {type: hashing}}]\n"
        "output_features: [{name: helpful, type: binary}]\n"
    )
    done = command("verify", "--reencode", "99", "-c", config, "--encoder", "{type: hashing, dim: 8}", "--store", built)
    assert done.code == 0
    assert "4 rows encoded again: cosine 1.0000" in done.out


@pytest.mark.parametrize("sample", ["5", "0.05", "0%", "101%", "five"])
def test_a_sample_is_a_percentage(command, built, sample):
    done = command("verify", "--sample", sample, "--store", built)
    assert done.code == 2
    assert "such as 5%" in done.err


def test_a_sample_can_be_drawn_again(command, built):
    found = command("verify", "--sample", "5 %", "--store", built, "--json").json
    assert found["bytes_read"] > 0
    assert (
        command("verify", "--sample", "5%", "--seed", found["seed"], "--store", built, "--json").json["seed"]
        == found["seed"]
    )


def test_a_seed_without_a_sample_is_a_mistake(command, built):
    done = command("verify", "--seed", 3, "--store", built)
    assert done.code == 2
    assert "--sample 5%" in done.err
    assert command("verify", "--seed", 3, "--reencode", 2, "--store", built).code == 0


def test_mistakes_are_told(command, built):
    assert command("verify", "--sample", "5%", "--read-data", "--store", built).code == 2
    assert command("verify", "--encoder", "hashing", "--store", built).code == 2
    assert command("verify", "nobody", "--store", built).code == 3
    shutil.rmtree(built)
    assert command("verify", "--store", built).code == 3
    assert not built.exists()


def test_the_command_line_starts_without_what_single_commands_need():
    wanted = "cachestore.verify", "cachestore.repair", "cachestore.diff", "cachestore.yaml_source"
    program = "import json, sys, cli.app; print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program, *wanted], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
