"""A trace's headline: what became of the message, in one line."""

import pytest

from gateway.explain.story import tell
from gateway.trace.document import read_document, write_documents
from gateway.verdict import Disposition, Shadow
from tests.trace.samples import trace

SOME = Shadow(rule="pass", disposition=Disposition.REJECT, refused_recipients=2, recipients_rule="no-robots")


@pytest.mark.parametrize(
    ("shadow", "said"),
    [
        (None, None),
        (
            Shadow(rule="pass", disposition=Disposition.ACCEPT),
            'The shadow file would accept it, by the rule "pass".',
        ),
        (SOME, 'It would refuse 2 of its recipients, by "no-robots".'),
        (
            Shadow(rule="gateway.undecided", disposition=Disposition.ACCEPT),
            "No rule of the shadow file refuses it so early.",
        ),
        (Shadow(rule="gateway.internal", disposition=Disposition.DEFER), "the log says why"),
    ],
)
def test_the_shadow_is_told_of_where_it_differs(shadow: Shadow | None, said: str | None) -> None:
    kept = read_document(write_documents([trace(shadow=shadow)]))
    assert kept.shadow == shadow
    headline = tell(kept).headline
    assert ("shadow" in headline) == (said is not None)
    assert said is None or said in headline
