"""What is written of a message can be read again, and hostile messages cannot make it large or break it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.results import DkimResult, DkimStatus
from gateway.mail.errors import ParseError
from gateway.mail.value import replace
from gateway.trace.document import MAX_BYTES, read_document, write_documents
from gateway.trace.model import Addressee, Trace
from tests.trace.samples import EVERYTHING, batches, trace


def test_what_is_written_is_read_again() -> None:
    assert read_document(write_documents([EVERYTHING])) == EVERYTHING


def test_the_sample_has_something_in_every_field() -> None:
    empty = Trace(
        id="", session=EVERYTHING.session, stage=EVERYTHING.stage, received=EVERYTHING.received,
        answered=EVERYTHING.answered,
    )  # fmt: skip
    left_out = {"author_fault", "is_remembered"}
    same = {name for name in Trace.__struct_fields__ if getattr(empty, name) == getattr(EVERYTHING, name)}
    assert same - {"session", "stage", "received", "answered"} <= left_out


@given(st.text(max_size=50), st.text(alphabet=st.characters(codec=None), max_size=50))
def test_any_text_of_a_strangers_is_kept_or_mended(helo: str, address: str) -> None:
    hostile = trace(
        session=replace(EVERYTHING.session, helo=helo),
        mail_from=address,
        recipients=(Addressee(address, 550, helo),),
    )
    document = write_documents([hostile])
    assert b"\0" not in document
    found = read_document(document)
    mended = address.encode("utf-8", "replace").decode()
    assert found.mail_from == mended
    assert found.recipients[0].address == mended


@pytest.mark.parametrize(
    "changes",
    [
        {"mail_from": "a" * 1_000_000},
        {"message_id": "\U0001f4e7" * 100_000},
        {"recipients": tuple(Addressee(f"{'x' * 200}{n}@example.net", 550, "y" * 500) for n in range(200))},
        {"questions": EVERYTHING.questions * 10_000},
        {"facts": {f"key{n}": "x" * 1_000 for n in range(1_000)}},
        {
            "evidence": replace(
                EVERYTHING.evidence,
                dkim=tuple(
                    DkimResult(position=n, status=DkimStatus.NEUTRAL, auid="x" * 100_000) for n in range(50)
                ),
            )
        },
    ],
)
def test_no_message_makes_a_large_document(changes: dict[str, object]) -> None:
    document = write_documents([trace(EVERYTHING.id, **changes)])
    assert len(document) <= MAX_BYTES
    found = read_document(document)
    assert found.id == EVERYTHING.id
    assert found.rule == EVERYTHING.rule


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"id": 1}',
        write_documents([EVERYTHING]).decode().replace('"reject"', '"burn"'),  # a word of another release
        write_documents([EVERYTHING]).decode()[:-10],
    ],
)
def test_what_is_no_trace_is_said_to_be_none(document: str) -> None:
    with pytest.raises(ParseError, match="not a trace of this release"):
        read_document(document)


def test_a_later_releases_further_fields_do_no_harm() -> None:
    document = json.loads(write_documents([EVERYTHING]))
    document["later"] = 1
    document["evidence"]["later"] = {}
    assert read_document(json.dumps(document)) == EVERYTHING


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("a bug")


def test_a_trace_that_cannot_be_written_costs_no_other() -> None:
    broken = trace("b.1", facts={"ours": Unwritable()})
    (batch,) = batches([trace("a.1"), broken, trace("c.1")])
    block = batch.block()
    assert block is not None
    assert block.count == 2
    assert [read_document(each).id for each in block.documents.splitlines()] == ["a.1", "c.1"]
    assert len(block.lines.splitlines()) == 2


def test_a_long_one_is_cut_and_those_beside_it_are_not() -> None:
    long = trace("b.1", questions=EVERYTHING.questions * 10_000)
    (batch,) = batches([*[EVERYTHING] * 30, long, *[EVERYTHING] * 30])
    block = batch.block()
    assert block is not None
    documents = block.documents.splitlines()
    assert documents[:30] == documents[31:] == write_documents([EVERYTHING] * 30).splitlines()
    assert len(documents[30]) <= MAX_BYTES
    assert read_document(documents[30]).id == "b.1"
