import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.feature_cache import FeatureCache, forget_image_files
from llama_index_ziprerank.reranking.features import PageFeatures, kept_deepstack
from llama_index_ziprerank.reranking.page_keys import PageFile, checkpoint_key, page_digest
from llama_index_ziprerank.reranking.stored_features import StoredRows


@pytest.fixture
def with_cache(reranker: ListwiseReranker, tmp_path: Path):
    """The tiny checkpoint with a cache of the given options, in one folder."""

    def build(**options) -> ListwiseReranker:
        cache = FeatureCache(tmp_path / "features", **options)
        return ListwiseReranker(reranker.model, reranker.processor, cache=cache)

    return build


def _refuse(*_: object) -> None:
    raise AssertionError("the vision tower was asked")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _assert_equal(ours: list[PageFeatures], theirs: list[PageFeatures]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.grid == b.grid
        assert torch.equal(a.merged, b.merged)
        assert len(a.deepstack) == len(b.deepstack) == 3
        assert all(map(torch.equal, a.deepstack, b.deepstack))


def test_pages_of_any_size_come_out_of_memory_and_disk_exactly_as_the_tower_made_them(
    reranker: ListwiseReranker, with_cache, mixed_pages: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reranker.encode_pages(mixed_pages)
    first = with_cache()
    _assert_equal(first.encode_pages(mixed_pages), expected)
    restarted = with_cache()
    for one in (first, restarted):
        monkeypatch.setattr(one.model.model, "get_image_features", _refuse)
        _assert_equal(one.encode_pages(mixed_pages), expected)


@pytest.mark.parametrize("stored", [None, "int8"])
def test_a_page_scores_the_same_the_first_time_and_ever_after(with_cache, pages: list[Image.Image], stored) -> None:
    reranker = with_cache(dtype=stored)
    cold = reranker.rerank("set the line width", pages[:5], keep_ratio=0.5)
    warm = reranker.rerank("set the line width", pages[:5], keep_ratio=0.5)
    disk = with_cache(dtype=stored).rerank("set the line width", pages[:5], keep_ratio=0.5)
    assert cold == warm == disk


def test_pruning_reads_the_kept_rows_of_the_deepstack_layers_alone(
    with_cache, mixed_pages: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cache().encode_pages(mixed_pages)
    rows_read: list[int] = []
    read = StoredRows.read

    def watched(self: StoredRows, *arguments) -> torch.Tensor:
        out = read(self, *arguments)
        if self.values.dim() == 3:
            rows_read.append(len(out))
        return out

    monkeypatch.setattr(StoredRows, "read", watched)
    ranking = with_cache(memory_bytes=0).rerank("set the line width", mixed_pages, keep_ratio=0.25)
    assert sum(rows_read) == ranking.visual_tokens


def test_kept_rows_are_those_of_the_whole(with_cache, mixed_pages: list[Image.Image]) -> None:
    pages = with_cache().encode_pages(mixed_pages)
    counts = [len(page.merged) for page in pages]
    kept = torch.cat([torch.arange(0, count, 3) + sum(counts[:i]) for i, count in enumerate(counts)])
    ours = kept_deepstack(pages, kept, [len(range(0, count, 3)) for count in counts])
    for layer, whole in zip(ours, zip(*(page.deepstack for page in pages), strict=True), strict=True):
        assert torch.equal(layer, torch.cat(whole)[kept])


def test_memory_stays_within_its_budget_and_the_least_recently_used_page_leaves(
    with_cache, pages: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = with_cache()
    probe.encode_pages(pages[:1])
    reranker = with_cache(memory_bytes=3 * probe.cache.memory_bytes)
    for page in pages[:3]:
        reranker.encode_pages([page])
    reranker.encode_pages(pages[:1])  # used again: the second page is now the oldest
    reranker.encode_pages(pages[3:4])
    assert reranker.cache.memory_bytes == 3 * probe.cache.memory_bytes
    reranker.cache.folder = None  # memory alone
    assert [reranker.cache.get(reranker.cache_keys[0], page_digest(page)) is not None for page in pages[:4]] == [
        True, False, True, True
    ]  # fmt: skip


def test_features_larger_than_the_budget_are_used_and_not_kept(with_cache, pages: list[Image.Image]) -> None:
    reranker = with_cache(memory_bytes=10)
    reranker.encode_pages(pages[:2])
    assert reranker.cache.memory_bytes == 0
    assert len(_files(reranker.cache.folder)) == 2


def test_features_in_memory_own_their_memory(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    cached = ListwiseReranker(reranker.model, reranker.processor, cache=FeatureCache())
    for page in cached.encode_pages(pages[:4]):
        assert page.merged.untyped_storage().nbytes() == page.merged.nbytes


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: content.replace(b"ziprerank-features-1", b"ziprerank-features-0"),
        lambda content: content.replace(b'"grid":"1', b'"grid":"2'),
        lambda content: content.replace(b'"grid":"1', b'"grid":"x'),
        lambda content: content.replace(b'"merged"', b'"merger"'),
        lambda content: content[:-64] + b"\xff" * 64,
    ],
    ids="empty half cut zeros format grid words tensor nan".split(),
)
def test_a_damaged_file_is_written_again(with_cache, pages: list[Image.Image], damage, caplog) -> None:
    expected = with_cache().encode_pages(pages[:1])
    [file] = _files(with_cache().cache.folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    _assert_equal(with_cache().encode_pages(pages[:1]), expected)
    assert len(file.read_bytes()) == len(whole)
    assert caplog.text.count(str(file)) == 1
    _assert_equal(with_cache().encode_pages(pages[:1]), expected)
    assert caplog.text.count(str(file)) == 1


def test_a_file_under_another_pages_name_is_not_believed(with_cache, pages: list[Image.Image]) -> None:
    expected = with_cache().encode_pages(pages[:2])
    one, other = _files(with_cache().cache.folder)
    one.write_bytes(other.read_bytes())
    _assert_equal(with_cache().encode_pages(pages[:2]), expected)


def test_another_tower_another_resize_and_another_type_are_other_entries(
    reranker: ListwiseReranker, tmp_path: Path
) -> None:
    key = checkpoint_key(reranker.model, reranker.processor)
    assert checkpoint_key(reranker.model, reranker.processor) == key
    bias = reranker.model.model.visual.merger.linear_fc2.bias
    value = bias[0].item()
    with torch.no_grad():
        bias[0] += 1
        other_tower = checkpoint_key(reranker.model, reranker.processor)
        bias[0] = value
    size = reranker.processor.image_processor.size
    reranker.processor.image_processor.size = {**dict(size), "longest_edge": 100_000}
    other_size = checkpoint_key(reranker.model, reranker.processor)
    reranker.processor.image_processor.size = size
    blank = checkpoint_key(reranker.model, reranker.processor, skip_blank=True)
    assert len({key.fingerprint, other_tower.fingerprint, other_size.fingerprint, blank.fingerprint}) == 4
    assert checkpoint_key(reranker.model, reranker.processor) == key
    cache = FeatureCache(tmp_path, dtype="int8")
    cache.put(key, "ab", reranker.encode_pages([Image.new("RGB", (64, 64))])[0])
    assert FeatureCache(tmp_path).stored_type(key) == "int8"  # as the folder has it
    assert FeatureCache(tmp_path, dtype="float32").get(key, "ab") is None
    assert FeatureCache().stored_type(key) == "float32"  # as the model computes


def test_an_image_file_whose_features_are_known_is_not_decoded(with_cache, pages: list[Image.Image]) -> None:
    reranker = with_cache()
    file = PageFile(encode_png(pages[0]))
    expected = reranker.encode_pages([file])
    _assert_equal(reranker.encode_pages([PageFile(file.content, _refuse)]), expected)


def test_pages_that_show_the_same_are_looked_at_once(with_cache, pages: list[Image.Image]) -> None:
    reranker = with_cache()
    assert reranker.cache_pages([pages[0], pages[1], pages[0].copy()]) == 2
    assert reranker.cache_pages(pages[:3]) == 1


def test_the_size_on_disk_is_known_beforehand(with_cache, mixed_pages: list[Image.Image]) -> None:
    for stored in ("bfloat16", "int8"):
        reranker = with_cache(dtype=stored)
        files = [PageFile(encode_png(page)) for page in mixed_pages]
        before = sum(file.stat().st_size for file in _files(reranker.cache.folder))
        cost = reranker.cache_cost([*files, mixed_pages[1], *files])
        assert cost.pages == 4
        reranker.cache_pages([*files, mixed_pages[1]])
        written = sum(file.stat().st_size for file in _files(reranker.cache.folder)) - before
        assert written <= cost.bytes <= written + 4 * 1024
        assert reranker.cache_cost([*files, mixed_pages[1]]).pages == 0


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(
    with_cache, pages: list[Image.Image], tmp_path: Path, caplog
) -> None:
    reranker = with_cache()
    (tmp_path / "features").write_text("in the way")
    expected = reranker.encode_pages(pages[:2])
    _assert_equal(reranker.encode_pages(pages[:2]), expected)
    assert caplog.text.count("cannot be written") == 1


def test_a_folder_that_can_be_written_again_is(with_cache, pages: list[Image.Image], tmp_path: Path, caplog) -> None:
    reranker = with_cache()
    in_the_way = tmp_path / "features"
    for rounds in (1, 2):
        in_the_way.write_text("in the way, like a disk that is full")
        reranker.encode_pages(pages[: 2 * rounds])
        assert caplog.text.count("cannot be written") == rounds
        in_the_way.unlink()
        reranker.encode_pages(pages[2 * rounds : 2 * rounds + 1])
        assert len(_files(in_the_way)) == 1
        shutil.rmtree(in_the_way)
    assert reranker.cache_pages(pages[:5]) == 5  # what memory alone holds is written too
    assert len(_files(in_the_way)) == 5


@pytest.mark.parametrize("budget", [0, 3.5, 20])
def test_filling_ends_where_nothing_more_is_kept(
    reranker: ListwiseReranker, pages: list[Image.Image], tmp_path: Path, caplog, budget: float
) -> None:
    room = int(budget * reranker.encode_pages(pages[:1])[0].merged.nbytes * 4)  # in pages: one part of four is merged
    caches = [FeatureCache(memory_bytes=room), FeatureCache(tmp_path / "features", memory_bytes=room)]
    (tmp_path / "features").write_text("in the way, like a disk that is full")
    kept = min(int(budget), 6)
    for cache in caches:
        caplog.clear()
        with_cache = ListwiseReranker(reranker.model, reranker.processor, cache=cache)
        assert with_cache.cache_pages(pages[:6]) == kept
        assert ("memory for page features is full" in caplog.text) == (kept < 6)
        assert with_cache.cache_cost(pages[:6]).pages == 6 - kept


def test_a_folder_that_is_removed_while_in_use_is_made_again(with_cache, pages: list[Image.Image]) -> None:
    reranker = with_cache(memory_bytes=0)
    reranker.encode_pages(pages[:1])
    shutil.rmtree(reranker.cache.folder)
    reranker.encode_pages(pages[:2])
    assert len(_files(reranker.cache.folder)) == 2


def test_a_damaged_image_is_named_where_its_size_is_asked_for(with_cache) -> None:
    def named(content: bytes) -> Image.Image:
        raise ValueError(f"page 7: {len(content)} bytes are no image")

    with pytest.raises(ValueError, match="page 7: 4 bytes"):
        with_cache().cache_cost([PageFile(b"oops", named)])


def test_a_page_too_thin_is_named_where_its_size_is_asked_for(with_cache, pages: list[Image.Image]) -> None:
    thin = Image.new("RGB", (3, 900))
    for page in (thin, PageFile(encode_png(thin))):
        with pytest.raises(ValueError, match="Page 1 of the given list .from 0., 3x900 pixels, .* ratio"):
            with_cache().cache_cost([pages[0], page])


def test_calls_are_answered_while_a_cache_is_filled(with_cache, pages: list[Image.Image], monkeypatch) -> None:
    reranker = with_cache()
    features = reranker.encode_pages(pages[:2])
    answered: list[bool] = []
    put = reranker.cache.put

    def put_while_another_asks(*arguments) -> PageFeatures:
        asking = threading.Thread(target=reranker.rerank, args=("axis", features))
        asking.start()
        asking.join(timeout=20)
        answered.append(not asking.is_alive())
        return put(*arguments)

    monkeypatch.setattr(reranker.cache, "put", put_while_another_asks)
    assert reranker.cache_pages(pages[2:4]) == 2
    assert answered == [True, True]


def test_two_that_fill_a_cache_with_the_same_pages_look_at_each_once(with_cache, pages: list[Image.Image]) -> None:
    reranker = with_cache()
    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(reranker.cache_pages, [pages[:12], pages[:12]])) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [({"memory_bytes": -1}, "-1"), ({"dtype": "int4"}, "float32, bfloat16, float16, int8, got 'int4'")],
)
def test_a_cache_refuses_what_it_cannot_do(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureCache(**options)


def test_a_file_is_no_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        FeatureCache(tmp_path / "file")


def test_a_removed_page_leaves_nothing_behind(with_cache, pages: list[Image.Image], tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, page in zip(paths, pages, strict=False):
        path.write_bytes(encode_png(page))
    for stored in ("int8", "float32"):
        reranker = with_cache(dtype=stored)
        reranker.cache_pages(PageFile(path.read_bytes()) for path in paths)
    forget_image_files(reranker.cache.folder, [paths[0], tmp_path / "missing.png"])
    assert [reranker.cache.holds(reranker.cache_keys[0], page_digest(PageFile(p.read_bytes()))) for p in paths] == [
        False, True
    ]  # fmt: skip
    assert len(_files(reranker.cache.folder)) == 2


def test_what_a_page_that_stays_shows_too_is_kept(with_cache, pages: list[Image.Image], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("old.png", "new.png")]
    for path in paths:
        path.write_bytes(encode_png(pages[0]))
    reranker = with_cache(dtype="float32")
    reranker.cache_pages([PageFile(paths[0].read_bytes())])
    forget_image_files(reranker.cache.folder, [paths[0]])
    assert len(_files(reranker.cache.folder)) == 1
    forget_image_files(reranker.cache.folder, paths)
    assert not _files(reranker.cache.folder)


def test_files_that_another_process_takes_away_meanwhile_are_no_error(
    with_cache, pages: list[Image.Image], tmp_path: Path, monkeypatch
) -> None:
    old, twin, unfinished = (tmp_path / name for name in ("old.png", "twin.png", "new.png.1234.part"))
    for path in (old, twin, unfinished):
        path.write_bytes(encode_png(pages[0]))
    reranker = with_cache(dtype="float32")
    reranker.cache_pages([PageFile(old.read_bytes())])
    is_file, read_bytes = Path.is_file, Path.read_bytes

    def is_file_until_now(path: Path) -> bool:
        found = is_file(path)
        unfinished.unlink(missing_ok=True)
        return found

    def read_before_the_twin_goes(path: Path) -> bytes:
        content = read_bytes(path)
        twin.unlink(missing_ok=True)
        return content

    monkeypatch.setattr(Path, "is_file", is_file_until_now)
    monkeypatch.setattr(Path, "read_bytes", read_before_the_twin_goes)
    forget_image_files(reranker.cache.folder, [old])
    assert not _files(reranker.cache.folder)


def test_what_cannot_be_swept_does_not_keep_features_from_being_written(
    with_cache, pages: list[Image.Image], caplog
) -> None:
    reranker = with_cache()
    foreign = reranker.cache.folder / "unfinished" / "@eaDir"  # as file servers put there
    foreign.mkdir(parents=True)
    os.utime(foreign, (0, 0))
    reranker.encode_pages(pages[:2])
    assert reranker.cache.is_written and not caplog.text
    assert len(_files(reranker.cache.folder)) == 2
