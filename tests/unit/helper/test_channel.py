"""Messages out, answers in: whole, in order, and never somebody else's."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from fake_libxl import SAVE_CALLBACKS, FakeLibxl

from saverestore.errors import Interrupted
from saverestore.helper.channel import Channel, LibxlGone
from saverestore.helper.messages import REPLY, Level, MessageType
from saverestore.interrupts import handled


@pytest.mark.parametrize("dripping", [False, True])
def test_each_question_gets_its_own_answer(dripping):
    libxl = FakeLibxl(SAVE_CALLBACKS, dripping=dripping)
    libxl.answers = {MessageType.SUSPEND: 1, MessageType.SWITCH_QEMU_LOGDIRTY: -1}
    channel = libxl.channel()
    assert channel.ask(MessageType.SUSPEND) == 1
    assert channel.ask(MessageType.SWITCH_QEMU_LOGDIRTY, 7, 1) == -1
    assert channel.ask(MessageType.COMPLETE, 0, 0) == 0
    libxl.close()
    assert libxl.messages == [
        (MessageType.SUSPEND, ()),
        (MessageType.SWITCH_QEMU_LOGDIRTY, (7, 1)),
        (MessageType.COMPLETE, (0, 0)),
    ]


def test_an_answer_that_a_signal_kept_from_being_read_is_not_taken_for_the_next():
    libxl = FakeLibxl(SAVE_CALLBACKS)
    released = threading.Event()

    def suspend() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(10)
        return 1

    libxl.answers = {MessageType.SUSPEND: suspend, MessageType.SWITCH_QEMU_LOGDIRTY: 5}
    channel = libxl.channel()
    with handled():
        with pytest.raises(Interrupted):
            channel.ask(MessageType.SUSPEND)
        released.set()
        assert channel.ask(MessageType.SWITCH_QEMU_LOGDIRTY, 7, 0) == 5
    libxl.close()


def test_half_an_answer_is_kept_for_when_the_rest_comes():
    replies, answers = os.pipe()
    _, messages = os.pipe()
    channel = Channel(replies_fd=replies, messages_fd=messages, callbacks=SAVE_CALLBACKS)
    os.write(answers, REPLY.pack(1)[:2])
    with handled():
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Interrupted):
            channel.ask(MessageType.SUSPEND)
    os.write(answers, REPLY.pack(1)[2:] + REPLY.pack(77))
    assert channel.ask(MessageType.COMPLETE, -1, 4) == 77


def test_what_libxl_would_not_answer_is_not_asked():
    libxl = FakeLibxl(SAVE_CALLBACKS)
    channel = libxl.channel()
    for type in (MessageType.CHECKPOINT, MessageType.STATIC_DATA_DONE, MessageType.LOG):
        with pytest.raises(ValueError, match=type.name):
            channel.ask(type)
    libxl.close()
    assert libxl.messages == []


def test_libxl_that_went_away_is_an_error_and_no_wait():
    libxl = FakeLibxl(SAVE_CALLBACKS)
    replies, answers = os.pipe()
    os.close(answers)
    gone = Channel(replies_fd=replies, messages_fd=libxl.helper_writes, callbacks=SAVE_CALLBACKS)
    with pytest.raises(LibxlGone, match="without an answer"):
        gone.ask(MessageType.SUSPEND)
    libxl.close()


def test_nobody_to_take_messages_is_told_by_the_first_that_is_sent():
    reading, writing = os.pipe()
    os.close(reading)
    channel = Channel(replies_fd=0, messages_fd=writing)
    with pytest.raises(LibxlGone, match="accepts no more"):
        channel.log(Level.INFO, "hello")
    os.close(writing)


def test_messages_of_several_threads_stay_whole():
    libxl = FakeLibxl(SAVE_CALLBACKS)
    channel = libxl.channel()
    texts = [letter * 6000 for letter in "abcd"]  # more than PIPE_BUF: the kernel does not keep them whole

    def log(text: str) -> None:
        for _ in range(20):
            channel.log(Level.INFO, text)

    threads = [threading.Thread(target=log, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libxl.close()
    assert sorted(text for _, text in libxl.logged) == sorted(texts * 20)


def test_what_prints_or_reads_by_mistake_does_not_meet_the_protocol(tmp_path):
    """In a process of its own, which has libxl at standard input and output."""
    libxl = FakeLibxl(SAVE_CALLBACKS)
    libxl.answers[MessageType.SUSPEND] = 1
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(libxl.helper_reads, 0)
            os.dup2(libxl.helper_writes, 1)
            os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
            channel = Channel.on_standard_streams(SAVE_CALLBACKS)
            os.write(1, b"a stray print")
            assert os.read(0, 1) == b""
            assert channel.ask(MessageType.SUSPEND) == 1
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    libxl.close()
    assert libxl.types() == [MessageType.SUSPEND]
    assert (tmp_path / "stderr").read_bytes() == b"a stray print"
