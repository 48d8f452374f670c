import mmap

import pytest

from gateway.milter.spool import Spool


@pytest.mark.parametrize("sizes", [(), (10,), (10, 0, 5), (10, 11), (30, 1, 1), (3,) * 20])
def test_gives_back_what_it_took_in_memory_or_in_a_file(sizes: tuple[int, ...]) -> None:
    spool = Spool(max_bytes=100, threshold_bytes=20)
    pieces = [bytes([65 + at]) * size for at, size in enumerate(sizes)]
    for piece in pieces:
        spool.write(piece)
    content = spool.content()
    assert content[:] == b"".join(pieces)
    assert isinstance(content, mmap.mmap) == (sum(sizes) > 20)
    assert not spool.overflowed


def test_keeps_nothing_of_what_is_too_large_but_counts_on() -> None:
    spool = Spool(max_bytes=100, threshold_bytes=20)
    for _ in range(50):
        spool.write(b"x" * 10)
    assert spool.overflowed
    assert spool.size == 500
    assert spool.content() == b""


def test_exactly_the_limit_is_not_too_large() -> None:
    spool = Spool(max_bytes=100, threshold_bytes=1_000)
    spool.write(b"x" * 100)
    assert not spool.overflowed
    assert len(spool.content()) == 100
