"""The terminal chat against a worker that answers by the clock."""

import io
from collections.abc import Iterator

import pytest
from serve.fleet import Fleet, Member, answer

from benchmarks.servers import free_port, wait_until
from tinyserve.serve import cli
from tinyserve.serve.cli import AnswerError, Chat

ANSWER = answer(5, prompt="")


@pytest.fixture(scope="module")
def worker() -> Iterator[Member]:
    with Fleet() as fleet:
        yield fleet.timed_worker(None, "--tokens", "5", "--interval", "0.02")


def run(worker: Member, *flags: str) -> int:
    return cli.main(["--worker-address", worker.url, *flags])


def test_one_question(worker: Member, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(worker, "--message", "hi there") == 0
    assert capsys.readouterr().out == ANSWER + "\n"


def test_questions_from_a_pipe(
    worker: Member, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n/help\ntwo\n/reset\n/exit\nnever asked\n"))
    assert run(worker) == 0
    output = capsys.readouterr()
    assert output.out == f"{ANSWER}\n{cli.HELP}\n{ANSWER}\n"
    assert "timed" in output.err  # whom one talks to


def test_the_conversation_grows_and_is_forgotten(worker: Member) -> None:
    chat = Chat(worker.url, "timed", {"max_new_tokens": 2}, system="Be brief.")
    assert list(chat.ask("one")) == ["w0 ", "w1 "]
    assert chat.messages == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "w0 w1 "}]
    assert list(chat.ask("two")) == ["w0 ", "w1 "]
    assert len(chat.messages) == 4
    chat.reset()
    assert chat.messages == []


def test_an_answer_that_is_stopped_stays_and_its_request_ends(worker: Member) -> None:
    chat = Chat(worker.url, "timed", {})
    pieces = chat.ask("one")
    assert next(pieces) == "w0 "
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": "w0 "}
    wait_until("the request has ended", lambda: worker.health()["num_running"] == 0, 5)


def test_ctrl_c_stops_an_answer_and_not_the_program() -> None:
    def pieces() -> Iterator[str]:
        yield "w0"
        raise KeyboardInterrupt

    out = io.StringIO()
    cli.show((piece for piece in pieces()), out)
    assert out.getvalue() == "w0 [stopped]\n"


def test_an_error_record_is_shown_and_the_conversation_is_as_before(
    worker: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat(worker.url, "timed", {"top_p": 3})
    with pytest.raises(AnswerError, match=r"top_p must be between 0 and 1, got 3.*40302"):
        list(chat.ask("one"))
    assert chat.messages == []
    assert run(worker, "--top-p", "3", "--message", "one") == 1
    assert "top_p must be between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-name", "other"], ["--model-name other", "timed"]),
        (["--worker-address", f"http://127.0.0.1:{free_port()}"], ["/worker_get_status", "refused"]),
    ],
)
def test_whom_to_ask_is_checked_first(
    worker: Member, flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(worker, *flags) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_the_only_model_of_a_controller_needs_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    with Fleet() as fleet:
        controller = fleet.controller()
        flags = ["--controller-address", controller.url, "--message", "hi"]
        assert cli.main(flags) == 1
        assert "there are: none" in capsys.readouterr().err
        fleet.timed_worker(controller, "--tokens", "5", "--interval", "0.001")
        assert cli.main(flags) == 0
        assert capsys.readouterr().out == ANSWER + "\n"
        fleet.timed_worker(controller, model="second")
        assert cli.main(flags) == 1
        assert "second, timed" in capsys.readouterr().err
