"""Rotation as a set of rules: whatever happens in whatever order, no mail is signed by a key that cannot be found."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.auth.dkim.key import KeyType, parse_key
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.making import Order, make_keys
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.rotation import Note, Rotation, Schedule, Step
from tests.keys.world import World

NOW = datetime(2026, 11, 24, 6, tzinfo=UTC)
DAY = timedelta(days=1)
DAY_S = 86_400
SCHEDULE = Schedule(publish_ahead_s=DAY_S, keep_old_s=7 * DAY_S, rotate_every_s=90 * DAY_S)
DOMAIN = "example.net"


class Site:
    def __init__(self, folder: Path, *, at_once: bool = True, domains: tuple[str, ...] = (DOMAIN,)) -> None:
        self.directory = KeyDirectory(folder / "keys")
        self.world = World(at_once=at_once)
        with self.directory.locked():
            for domain in domains:
                self.make(domain)

    def make(self, domain: str = DOMAIN, *algorithms: KeyType) -> None:
        order = Order(domain=domain, algorithms=algorithms or (KeyType.ED25519,), bits=2048)
        make_keys(self.directory, order, now=NOW)

    async def run(
        self,
        now: datetime,
        *domains: str,
        by_hand: bool = False,
        start: bool = False,
        schedule: Schedule = SCHEDULE,
    ) -> tuple[Note, ...]:
        with self.directory.locked():
            rotation = Rotation(
                self.directory,
                schedule,
                resolver=self.world,
                publisher=None if by_hand else self.world,
                now=now,
            )
            return await rotation.run(domains, start=start)

    def states(self, domain: str = DOMAIN) -> dict[str, str]:
        return {key.selector: key.state.value for key in self.directory.read() if key.domain == domain}

    def of(self, state: KeyState) -> list[ManagedKey]:
        return [key for key in self.directory.read() if key.state is state]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def steps(notes: tuple[Note, ...]) -> list[Step]:
    return [note.step for note in notes]


async def test_the_first_key_signs_as_soon_as_it_is_seen(site: Site) -> None:
    site.world.at_once = False
    assert steps(await site.run(NOW)) == [Step.WAITING]
    assert site.states() == {"20261124-ed25519": "made"}
    site.world.spread()
    assert steps(await site.run(NOW)) == [Step.PUBLISHED, Step.ACTIVATED]
    assert site.states() == {"20261124-ed25519": "active"}


async def test_a_key_that_is_not_seen_never_signs(site: Site) -> None:
    await site.run(NOW)
    site.world.at_once = False
    for day in range(89, 200):
        await site.run(NOW + day * DAY)
    assert site.states() == {"20261124-ed25519": "active", "20270221-ed25519": "made"}


async def test_a_successor_that_goes_out_of_sight_is_waited_for(site: Site) -> None:
    await site.run(NOW)
    await site.run(NOW + 89 * DAY)
    (new,) = site.of(KeyState.PUBLISHED)
    site.world.at_once = False
    del site.world.seen[new.name]
    assert Step.ACTIVATED not in steps(await site.run(NOW + 90 * DAY))
    site.world.spread()
    assert Step.ACTIVATED in steps(await site.run(NOW + 90 * DAY))


@pytest.mark.parametrize(
    "there",
    [
        b"v=DKIM1; k=ed25519; p=",  # revoked
        b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",  # another key
        b"v=DKIM1; p=nonsense!",
        b"v=spf1 -all",  # of a wildcard
    ],
)
async def test_a_wrong_record_is_no_reason_to_sign(site: Site, there: bytes) -> None:
    site.world.locked = True
    (key,) = site.of(KeyState.MADE)
    site.world.seen[key.name] = there
    notes = await site.run(NOW)
    assert Step.FAULT in steps(notes)
    assert site.of(KeyState.MADE) == [key]


async def test_while_the_resolver_is_down_nothing_changes(site: Site) -> None:
    await site.run(NOW)
    site.world.down = True
    before = site.directory.read()
    assert steps(await site.run(NOW + 80 * DAY)) == [Step.WAITING]
    assert site.directory.read() == before
    await site.run(NOW + 89 * DAY)
    await site.run(NOW + 95 * DAY)
    assert site.states() == {"20261124-ed25519": "active", "20270221-ed25519": "made"}


async def test_both_kinds_of_a_domain_change_together(site: Site) -> None:
    with site.directory.locked():
        site.make(DOMAIN, KeyType.RSA)
    await site.run(NOW)
    await site.run(NOW + 89 * DAY)
    new = site.of(KeyState.PUBLISHED)
    assert {key.algorithm for key in new} == set(KeyType)
    site.world.at_once = False
    del site.world.seen[new[0].name]
    await site.run(NOW + 91 * DAY)
    assert len(site.of(KeyState.ACTIVE)) == 2  # one is not seen: the other waits, too
    site.world.spread()
    await site.run(NOW + 91 * DAY)
    assert sorted(site.states().values()) == ["active", "active", "retiring", "retiring"]


async def test_a_key_of_a_further_kind_takes_nothing_away(site: Site) -> None:
    await site.run(NOW)
    with site.directory.locked():
        site.make(DOMAIN, KeyType.RSA)
    await site.run(NOW)
    assert site.states() == {"20261124-ed25519": "active", "20261124-rsa": "published"}
    await site.run(NOW + DAY)
    assert site.states() == {"20261124-ed25519": "active", "20261124-rsa": "active"}


async def test_rsa_keys_keep_their_length(tmp_path: Path) -> None:
    site = Site(tmp_path, domains=())
    with site.directory.locked():
        make_keys(site.directory, Order(domain=DOMAIN, algorithms=[KeyType.RSA], bits=3072), now=NOW)
    await site.run(NOW)
    await site.run(NOW, start=True)
    (new,) = site.of(KeyState.PUBLISHED)
    assert new.key_record.bits == 3072


async def test_a_change_can_be_begun_at_once_and_only_once(site: Site) -> None:
    await site.run(NOW)
    assert Step.MADE in steps(await site.run(NOW + DAY, start=True))
    assert Step.MADE not in steps(await site.run(NOW + DAY, start=True))
    assert len(site.states()) == 2


async def test_a_key_that_leaked_is_out_of_use_in_two_runs(site: Site) -> None:
    await site.run(NOW)
    (leaked,) = site.of(KeyState.ACTIVE)
    at_once = Schedule(publish_ahead_s=0, keep_old_s=0, rotate_every_s=None)
    await site.run(NOW + DAY, start=True, schedule=at_once)
    assert leaked.name not in {key.name for key in site.of(KeyState.ACTIVE)}
    await site.run(NOW + DAY, schedule=at_once)
    assert site.world.seen[leaked.name] == leaked.revoked_record


async def test_keys_grow_old_only_where_the_config_says_when(site: Site) -> None:
    never = Schedule(publish_ahead_s=DAY_S, keep_old_s=DAY_S, rotate_every_s=None)
    await site.run(NOW)
    await site.run(NOW + 4_000 * DAY, schedule=never)
    assert list(site.states().values()) == ["active"]


async def test_only_the_domain_that_was_named(tmp_path: Path) -> None:
    site = Site(tmp_path, domains=("example.net", "example.org"))
    await site.run(NOW, "example.org")
    assert site.states("example.net") == {"20261124-ed25519": "made"}
    assert site.states("example.org") == {"20261124-ed25519": "active"}


async def test_a_primary_that_is_down_is_waited_for_once_and_all_else_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path, domains=("a.example", "b.example", "c.example"))
    site.world.unreachable = True
    (key,) = [key for key in site.directory.read() if key.domain == "c.example"]
    site.world.seen[key.name] = key.record  # published by hand
    notes = await site.run(NOW)
    assert steps(notes).count(Step.FAULT) == site.world.attempts == 1
    assert site.states("c.example") == {"20261124-ed25519": "active"}


async def test_an_active_key_whose_record_is_lost_is_told_and_put_back(site: Site) -> None:
    await site.run(NOW)
    (key,) = site.of(KeyState.ACTIVE)
    site.world.seen.clear()
    (note,) = await site.run(NOW, by_hand=True)
    assert note.step is Step.FAULT
    assert "it signs, but at" in note.says
    assert await site.run(NOW) == ()
    assert site.world.seen == {key.name: key.record}


async def test_by_hand_the_operator_is_told_each_step(site: Site) -> None:
    (key,) = site.of(KeyState.MADE)
    assert steps(await site.run(NOW, by_hand=True)) == [Step.TO_PUBLISH]
    site.world.seen[key.name] = key.record
    await site.run(NOW, by_hand=True)
    await site.run(NOW + 89 * DAY, by_hand=True)
    (new,) = site.of(KeyState.MADE)
    site.world.seen[new.name] = new.record
    await site.run(NOW + 90 * DAY, by_hand=True)
    await site.run(NOW + 91 * DAY, by_hand=True)
    assert site.of(KeyState.RETIRING)[0].name == key.name
    assert steps(await site.run(NOW + 99 * DAY, by_hand=True)) == [Step.TO_REVOKE]
    del site.world.seen[key.name]
    assert steps(await site.run(NOW + 99 * DAY, by_hand=True)) == [Step.GONE]
    assert not site.directory.has_file(key)


async def test_a_successor_whose_file_cannot_be_used_does_not_take_over(site: Site) -> None:
    await site.run(NOW)
    await site.run(NOW + 89 * DAY)
    (new,) = site.of(KeyState.PUBLISHED)
    path = site.directory.path_of(new)
    pem = path.read_bytes()
    path.write_text("garbage")
    notes = await site.run(NOW + 91 * DAY)
    assert steps(notes) == [Step.FAULT]
    assert str(path) in notes[0].says
    assert site.states() == {"20261124-ed25519": "active", "20270221-ed25519": "published"}
    path.write_bytes(pem)
    assert Step.ACTIVATED in steps(await site.run(NOW + 91 * DAY))


class Interrupted(BaseException):
    """The power fails."""


class Fuse:
    """Lets so many changes of the file system pass, then none."""

    def __init__(self, left: int) -> None:
        self.left = left

    def blow(self) -> None:
        if self.left == 0:
            raise Interrupted
        self.left -= 1


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    fuse = Fuse(-1)
    replace_file, unlink = Path.replace, Path.unlink

    def replacing(self: Path, target: Path) -> Path:
        fuse.blow()
        result = replace_file(self, target)
        fuse.blow()
        return result

    def unlinking(self: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        fuse.blow()
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)
    return fuse


def check_promises(site: Site, *, revoked: bool) -> None:
    """What must hold at any moment, even in the middle; `revoked`: the old key's time is over."""
    keys = site.directory.read()
    assert any(key.state is KeyState.ACTIVE for key in keys)
    for key in keys:
        if key.state is KeyState.ACTIVE or (key.state is KeyState.RETIRING and not revoked):
            assert parse_key(site.world.seen[key.name]).key == key.key_record.key
        if key.state is not KeyState.GONE:
            site.directory.load(key)


@pytest.mark.parametrize("changes", range(40))
async def test_interrupted_anywhere_it_is_run_again_and_comes_to_the_same_end(
    site: Site, fuse: Fuse, changes: int
) -> None:
    await site.run(NOW)
    fuse.left = changes
    for day in (89, 90, 91, 98, 99, 110):
        now = NOW + day * DAY
        try:
            await site.run(now)
        except Interrupted:
            fuse.left = -1
            check_promises(site, revoked=day >= 97)
            await site.run(now)
        check_promises(site, revoked=day >= 97)
    active = site.of(KeyState.ACTIVE)
    assert [key.selector[:8] for key in active] == ["20270221"]
    assert [key.name for key in site.directory.read()] == [key.name for key in active]
    assert list(site.world.seen) == [active[0].name]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(["run", "spread", "down", "locked", "start"])),
        max_size=25,
    )
)
async def test_whatever_happens_what_signs_is_seen(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str]]
) -> None:
    site = Site(tmp_path_factory.mktemp("site"), at_once=False)
    now = NOW
    for days, event in events:
        now += days * DAY
        match event:
            case "spread":
                site.world.spread()
            case "down":
                site.world.down = not site.world.down
            case "locked":
                site.world.locked = not site.world.locked
            case _:
                before = {key.name for key in site.of(KeyState.ACTIVE)}
                await site.run(now, start=event == "start")
                active = site.of(KeyState.ACTIVE)
                assert not before or active
                for key in active:
                    assert site.world.seen.get(key.name) == key.record
                    site.directory.load(key)


async def test_a_directory_that_cannot_be_written_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.keys.directory.os.fsync", full)
    before = site.directory.state_path.read_bytes()
    with pytest.raises(KeyDirectoryError, match="No space left"):
        await site.run(NOW)
    assert site.directory.state_path.read_bytes() == before
