"""Copies, and documents that are nearly copies: datatrove's steps, over all parts at once."""

from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)

from data.curation.files import SampleWriter
from data.curation.recipe import Recipe
from data.curation.words import SAME_WORDS, WORDS

RANGES = 16  # of the hashes of whole texts, which as many tasks compare


def text_of(document: Document) -> str:
    return document.text


EXACT = ExactDedupConfig(content_getter=text_of)


def exact_signature(folder: Path) -> ExactDedupSignature:
    return ExactDedupSignature(str(folder), EXACT, finder_workers=RANGES)


def exact_find(signatures: Path, folder: Path) -> ExactFindDedups:
    return ExactFindDedups(str(signatures), str(folder), EXACT, lines_to_buffer=1000)


def exact_filter(folder: Path, samples: SampleWriter) -> ExactDedupFilter:
    return ExactDedupFilter(str(folder), EXACT, samples)


def minhash(recipe: Recipe) -> MinhashConfig:
    return MinhashConfig(recipe.shingle_words, recipe.minhash_bands, recipe.minhash_rows, norm_config=SAME_WORDS)


def near_signature(recipe: Recipe, folder: Path) -> MinhashDedupSignature:
    return MinhashDedupSignature(str(folder), minhash(recipe), WORDS)


def near_find(recipe: Recipe, signatures: Path, folder: Path) -> MinhashDedupBuckets:
    return MinhashDedupBuckets(str(signatures), str(folder), config=minhash(recipe), lines_to_buffer=1000)


def near_cluster(recipe: Recipe, pairs: Path, folder: Path) -> MinhashDedupCluster:
    return MinhashDedupCluster(str(pairs), str(folder), minhash(recipe), lines_to_buffer=1000)


def near_filter(folder: Path, samples: SampleWriter) -> MinhashDedupFilter:
    return MinhashDedupFilter(str(folder), samples)
