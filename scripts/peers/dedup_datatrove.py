"""dedup_datatrove.py FOLDER WORK BANDS ROWS NGRAM
All four stages of datatrove's MinHash over the JSON Lines in FOLDER, in one process: prints the ids that stay, in order, and the seconds
of CPU, its start and its imports left out."""
import json, sys, time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages
from loguru import logger

source, work = sys.argv[1:3]
bands, rows, ngram = map(int, sys.argv[3:6])
logger.remove()
settings = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=ngram, num_buckets=bands, hashes_per_bucket=rows)
stages = [
    (1, [JsonlReader(source), MinhashDedupSignature(output_folder=f"{work}/signatures", config=settings, language=Languages.english)]),
    (bands, [MinhashDedupBuckets(input_folder=f"{work}/signatures", output_folder=f"{work}/pairs", config=settings)]),
    (1, [MinhashDedupCluster(input_folder=f"{work}/pairs", output_folder=f"{work}/clusters", config=settings)]),
    (1, [JsonlReader(source), MinhashDedupFilter(input_folder=f"{work}/clusters"), JsonlWriter(f"{work}/kept", compression=None)]),
]
began = time.process_time()
for number, (tasks, stage) in enumerate(stages):
    LocalPipelineExecutor(pipeline=stage, tasks=tasks, workers=1, logging_dir=f"{work}/log-{number}").run()
seconds = time.process_time() - began
kept = [json.loads(line)["metadata"]["number"] for line in Path(work, "kept", "00000.jsonl").open()]
print(json.dumps({"kept": kept, "seconds": seconds}))
