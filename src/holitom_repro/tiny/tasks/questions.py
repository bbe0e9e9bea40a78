"""The tiny benchmarks as lmms-eval tasks: the questions, the mp4 of each, and exact match on the one-word answer."""

from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask

from holitom_repro.tiny import benchmarks


class QuestionTask(ConfigurableTask):
    """A task whose documents come from ``holitom_repro.tiny.benchmarks``, not from a hub or an absolute path."""

    def __init__(self, config: dict[str, Any], model_name: str | None = None) -> None:
        known = {key: value for key, value in config.items() if key != "class"}  # TaskConfig does not know it
        super().__init__(config=known, model_name=model_name)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing is downloaded: the questions are drawn on the first call and read from the cache afterwards."""
        docs = [doc | {"benchmark": self.config.task} for doc in benchmarks.questions(self.config.task)]
        self.dataset = DatasetDict({self.config.test_split: Dataset.from_list(docs)})
        self.dataset_no_image = self.dataset  # there are no pictures in the documents


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The path of the document's video, which is written now if it is missing."""
    return [str(benchmarks.video_path(doc["benchmark"], doc["video"]))]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question as it was asked in training: no instruction is added."""
    return doc["question"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(results[0].strip().lower() == doc["answer"])}
