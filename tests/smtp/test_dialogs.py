"""Every wire conversation of tests/dialogs, on the bench, whole and cut into single bytes."""

import pytest

from gateway.smtp.dialog import Awaiting
from tests.smtp.dialog import Dialog, load_dialogs, run_dialog

DIALOGS = load_dialogs()


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
def test_dialog(dialog: Dialog) -> None:
    bench, _ = run_dialog(dialog)
    assert bench.core.awaiting is Awaiting.CLIENT or bench.downstream.at, "no question is left open"


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_dialog_is_the_same_however_it_is_cut(dialog: Dialog, cut: int) -> None:
    whole, heard = run_dialog(dialog)
    pieces, heard_in_pieces = run_dialog(dialog, cut=cut)
    assert heard_in_pieces == heard
    assert pieces.downstream.log == whole.downstream.log
    assert pieces.downstream.messages == whole.downstream.messages
    assert pieces.end == whole.end


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
@pytest.mark.parametrize("cut", [0, 40])
def test_dialog_is_the_same_where_recipients_are_asked_ahead(dialog: Dialog, cut: int) -> None:
    in_turn, heard = run_dialog(dialog)
    ahead, heard_ahead = run_dialog(dialog, cut=cut, is_screening=False)
    assert heard_ahead == heard
    assert ahead.downstream.messages == in_turn.downstream.messages
    assert ahead.end == in_turn.end


@pytest.mark.parametrize(
    "dialog",
    [
        each
        for each in DIALOGS
        if not any(option.startswith(("at DATA", "keywords")) for option in each.options)
    ],
    ids=lambda dialog: dialog.name,
)
@pytest.mark.parametrize("cut", [0, 40])
def test_dialog_is_the_same_where_downstream_takes_chunks(dialog: Dialog, cut: int) -> None:
    by_data, heard = run_dialog(dialog)
    told = tuple(line for line in dialog.lines if line.kind != "d <-")  # BDAT stands where DATA stood
    by_chunk, heard_by_chunk = run_dialog(Dialog(dialog.name, told), cut=cut, is_chunking=True)
    assert heard_by_chunk == heard
    assert by_chunk.downstream.messages == by_data.downstream.messages
    assert by_chunk.end == by_data.end
