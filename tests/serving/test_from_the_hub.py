"""A model and a dataset of the Hub, over HTTP: the dataset is streamed, at the commit that was named."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub_server import HubServer

from .conftest import BAD, COUNT
from .test_predict import ROOT, assert_whole

SCRIPT = """
import json, runpy, sys
from datasets import load_dataset
from huggingface_hub import HfApi
from artgraph_vit import ArtGraphPipeline

model, parquet, pictures, out, script = sys.argv[1:6]
ArtGraphPipeline.from_pretrained(model).push_to_hub("tester/model")
rows = load_dataset("parquet", data_files=f"{parquet}/*.parquet", split="train")
rows.push_to_hub("tester/pictures", split="validation")
api = HfApi()
api.create_repo("tester/folder", repo_type="dataset")
api.upload_folder(repo_id="tester/folder", repo_type="dataset", folder_path=f"{pictures}/room 0")
first = HfApi().dataset_info("tester/pictures").sha
rows.select(range(5)).push_to_hub("tester/pictures", split="validation")
main = runpy.run_path(script, run_name="script")["main"]
for name, source, revision in (
    ("first", "tester/pictures", first), ("last", "tester/pictures", "main"), ("folder", "tester/folder", "main")
):
    sys.argv = ["predict.py", "tester/model", source, f"{out}/{name}", "--dataset_revision", revision]
    sys.argv += ["--shard_rows", "16", "--num_workers", "0", "--use_cpu"]
    main()
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_streamed_at_its_commit(model_folder, parquet_folder, picture_folder, tmp_path):
    with HubServer({"hf_test": "tester"}) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
        environment |= {"HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            model_folder,
            parquet_folder,
            picture_folder,
            tmp_path,
            ROOT / "scripts" / "predict.py",
        ]
        run = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert server.unknown_requests == []
    rows = assert_whole(tmp_path / "first")
    assert [row["name"] for row in rows] == [f"artwork {number}" for number in range(COUNT)]
    loose = json.loads((tmp_path / "folder" / "report.json").read_text())  # pictures as they are, in no parquet
    assert (loose["pictures"], len(loose["bad_pictures"])) == (20, 1)
    assert json.loads((tmp_path / "last" / "report.json").read_text())["pictures"] == 5 < BAD[0]
