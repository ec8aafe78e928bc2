"""Pictures of families: scripted teams, and the page of all of them."""

import numpy as np
import pytest
from PIL import Image

from mg2l.core.schema import ConfigError
from mg2l.envs import gallery
from mg2l.envs.command import env_config
from mg2l.envs.render import TEAMS, record_scripted


def test_teams_act_differently():
    config = env_config("mpe-goals", ["max_ep_len=10"])
    first, *_ = recordings = [record_scripted(config, 0, 0, team) for team in TEAMS]
    assert [len(x) for x in recordings] == [10, 10, 10]
    assert all(np.array_equal(x[0], first[0]) for x in recordings)
    assert len({x[-1].tobytes() for x in recordings}) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mujoco-cheetah-vel-100", "--team=informed: CheetahVelConfig has bounds on returns"),
        ("magent-battle", "BattleConfig: the family has no scripted teams; these have: "),
    ],
)
def test_families_without_a_team(name, said):
    with pytest.raises(ConfigError, match=said):
        record_scripted(env_config(name), 0, 0, "informed")


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PICTURES", 5)
    assert gallery.main(["mpe-goals", "magent-battle", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "gallery.md").read_text()
    assert "A hidden goal for each agent" in page
    assert "Shown: the informed scripted team" in page
    assert "Shown: random actions" in page
    for name in ("mpe-goals", "magent-battle"):
        assert f"(gallery/{name}.webp)" in page
        with Image.open(tmp_path / "gallery" / f"{name}.webp") as picture:
            assert 2 <= picture.n_frames <= gallery.PICTURES
            assert picture.height == gallery.SIDE + gallery.TITLE
