"""Images are encoded once, in batches, within the memory that is allowed; what fails concerns one request."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from pictures import file_of, picture
from seeing import SPEC, SeeingModel

from tinyserve.engine.generator import RequestError
from tinyserve.engine.image_encoder import ImageEncoder, Lease
from tinyserve.engine.image_file import ImageFile
from tinyserve.models.llama import LlamaModel

IMAGES = [ImageFile.read(file_of(picture("RGB", 20, 30, seed))) for seed in range(8)]
TOKENS = SPEC.num_tokens(20, 30)
BROKEN = ImageFile.read(file_of(picture("RGB", 20, 30))[:-60])


@pytest.fixture
def model(tiny_model: LlamaModel) -> SeeingModel:
    return SeeingModel(tiny_model)


@pytest.fixture
def make_encoder(model: SeeingModel) -> Iterator[Callable[..., ImageEncoder]]:
    """An encoder that may keep so many images of TOKENS tokens."""
    encoders = []

    def make(num_images: float = 100) -> ImageEncoder:
        size = TOKENS * model.config.hidden_size * model.dtype.itemsize
        encoders.append(ImageEncoder(model, int(num_images * size)))
        return encoders[-1]

    yield make
    model.may_run.set()
    for encoder in encoders:
        encoder.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.002)


def test_each_image_gets_its_own(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    lease = make_encoder().submit([IMAGES[0], IMAGES[1], IMAGES[0]])
    first, second, third = lease.embeddings.result(20)
    torch.testing.assert_close(first, model.embedding(torch.tensor(model.tokens(IMAGES[0]))))
    torch.testing.assert_close(second, model.embedding(torch.tensor(model.tokens(IMAGES[1]))))
    assert third is first
    assert model.runs == [2]
    assert min(lease.timing.decode_s, lease.timing.preprocess_s, lease.timing.vision_s) > 0


def test_progress_is_seen_before_all_images_of_a_request_are_encoded(
    model: SeeingModel, make_encoder: Callable[..., ImageEncoder]
) -> None:
    model.may_run.clear()
    encoder = make_encoder()
    lease = encoder.submit(IMAGES[:3])
    wait_until(lambda: encoder.progress == 3)  # decoded; the tower is held back
    assert encoder.num_encoded == 0
    model.may_run.set()
    assert len(lease.embeddings.result(20)) == 3
    assert encoder.progress == 4


def test_what_is_known_is_not_encoded_again(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder()
    for _ in range(3):
        lease = encoder.submit(IMAGES[:2])
        assert len(lease.embeddings.result(20)) == 2
        lease.release()
        lease.release()
    assert lease.timing.vision_s == 0
    assert model.runs == [2]
    assert encoder.num_encoded == 2


def test_twins_in_flight_are_encoded_once_and_what_waits_is_batched(
    model: SeeingModel, make_encoder: Callable[..., ImageEncoder]
) -> None:
    encoder = make_encoder()
    model.may_run.clear()
    leases = [encoder.submit([IMAGES[0]])]
    wait_until(lambda: model.runs == [1])
    leases += [encoder.submit([image]) for image in (IMAGES[0], IMAGES[1], IMAGES[1], IMAGES[2])]
    assert encoder.num_pending == 5
    model.may_run.set()
    assert all(len(lease.embeddings.result(20)) == 1 for lease in leases)
    assert model.runs == [1, 2]
    assert encoder.num_pending == 0


def test_a_large_batch_is_cut(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    """Three tiles each, sixteen at once."""
    assert len(make_encoder().submit(IMAGES).embeddings.result(20)) == 8
    assert model.runs == [5, 3]


def test_who_exceeds_the_memory_waits_until_others_have_left(
    model: SeeingModel, make_encoder: Callable[..., ImageEncoder]
) -> None:
    encoder = make_encoder(2)
    first, second = encoder.submit([IMAGES[0]]), encoder.submit([IMAGES[1]])
    third = encoder.submit([IMAGES[2]])
    twin = encoder.submit([IMAGES[0]])  # needs no more memory, but does not overtake
    assert len(first.embeddings.result(20)) == len(second.embeddings.result(20)) == 1
    time.sleep(0.05)
    assert not third.embeddings.done()
    first.release()
    assert len(third.embeddings.result(20)) == 1
    time.sleep(0.05)
    assert not twin.embeddings.done()  # forgotten for the third, and there is no room again
    second.release()
    assert len(twin.embeddings.result(20)) == 1
    assert encoder.num_encoded == 4


def test_who_leaves_the_queue_lets_those_behind_pass(
    model: SeeingModel, make_encoder: Callable[..., ImageEncoder]
) -> None:
    encoder = make_encoder(3)
    first = encoder.submit(IMAGES[:2])
    assert len(first.embeddings.result(20)) == 2
    large, small = encoder.submit(IMAGES[2:4]), encoder.submit([IMAGES[4]])
    time.sleep(0.05)
    assert not small.embeddings.done()
    large.release()
    assert len(small.embeddings.result(20)) == 1


def test_a_request_that_alone_exceeds_the_memory_is_served_alone(
    model: SeeingModel, make_encoder: Callable[..., ImageEncoder]
) -> None:
    encoder = make_encoder(0.5)
    first, second = encoder.submit(IMAGES[:3]), encoder.submit(IMAGES[:1])
    assert len(first.embeddings.result(20)) == 3
    assert not second.embeddings.done()
    first.release()
    assert len(second.embeddings.result(20)) == 1
    second.release()
    assert encoder._cache.num_bytes == encoder._cache.used_bytes == 0


def test_a_damaged_file_fails_its_own_request(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder()
    model.may_run.clear()
    held = encoder.submit([IMAGES[0]])
    wait_until(lambda: model.runs == [1])
    bad, good = encoder.submit([IMAGES[1], BROKEN]), encoder.submit([IMAGES[2]])
    model.may_run.set()
    with pytest.raises(RequestError, match=r"images\[1\] cannot be decoded.*truncated") as error:
        bad.embeddings.result(20)
    assert error.value.code == 40001
    assert len(good.embeddings.result(20)) == len(held.embeddings.result(20)) == 1
    for lease in (held, bad, good):
        lease.release()
    assert encoder._cache.used_bytes == 0


@pytest.mark.parametrize(
    ("failure", "expected", "words"),
    [
        (RuntimeError("no such kernel"), RuntimeError, r"images\[0\] cannot be encoded: RuntimeError: no such kernel"),
        (RuntimeError("can't allocate memory: you tried"), MemoryError, r"images\[0\] does not fit in memory"),
        (MemoryError(), MemoryError, r"images\[0\] does not fit in memory"),
    ],
)
def test_a_failing_tower(
    model: SeeingModel,
    make_encoder: Callable[..., ImageEncoder],
    failure: Exception,
    expected: type[Exception],
    words: str,
) -> None:
    encoder = make_encoder()
    model.failure = failure
    with pytest.raises(expected, match=words):
        encoder.submit([IMAGES[0]]).embeddings.result(20)
    model.failure = None
    assert len(encoder.submit([IMAGES[0]]).embeddings.result(20)) == 1


def test_what_fails_together_is_tried_one_by_one(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder()
    model.failure = RuntimeError("can't allocate memory: you tried")
    with pytest.raises(MemoryError):
        encoder.submit(IMAGES[:3]).embeddings.result(20)
    assert model.runs == [3, 1, 1, 1]


def test_leaving_at_any_moment(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder(2)
    model.may_run.clear()
    in_work = encoder.submit([IMAGES[0]])
    wait_until(lambda: model.runs == [1])
    queued = encoder.submit([IMAGES[1]])
    cancelled = encoder.submit([IMAGES[2]])
    queued.release()
    with pytest.raises(CancelledError):
        queued.embeddings.result(0)
    assert cancelled.embeddings.cancel()
    in_work.release()
    model.may_run.set()
    last = encoder.submit([IMAGES[3]])
    assert len(last.embeddings.result(20)) == 1
    assert model.runs == [1, 1]
    last.release()
    cancelled.release()
    assert encoder._cache.used_bytes == 0
    assert encoder.submit([IMAGES[0]]).embeddings.done()  # nobody wanted it any more, but it is known


def test_closing_fails_what_waits(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder(1)
    held, waiting = encoder.submit([IMAGES[0]]), encoder.submit([IMAGES[1]])
    assert len(held.embeddings.result(20)) == 1
    encoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        waiting.embeddings.result(20)
    with pytest.raises(RuntimeError, match="closed"):
        encoder.submit([IMAGES[0]])
    held.release()


def test_random_requests_leave_nothing_behind(model: SeeingModel, make_encoder: Callable[..., ImageEncoder]) -> None:
    encoder = make_encoder(3)
    random = torch.Generator().manual_seed(3)
    leases: list[Lease] = []
    for _ in range(200):
        chosen = torch.randint(len(IMAGES), (int(torch.randint(1, 4, (1,), generator=random)),), generator=random)
        leases.append(encoder.submit([IMAGES[index] for index in chosen]))
        for lease in leases[:-4]:
            lease.release()
        leases = leases[-4:]
    for lease in leases:
        lease.release()
    wait_until(lambda: encoder.num_pending == 0)
    assert encoder._cache.used_bytes == 0
    assert encoder._cache.num_bytes <= encoder._max_bytes
