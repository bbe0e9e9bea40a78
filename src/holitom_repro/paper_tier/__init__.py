"""The paper tier: the papers' models on the four public benchmarks, through lmms-eval, on as many GPUs as there are.

``./reproduce.sh table1 --tier paper --processes 8`` ends here; ``python -m holitom_repro.paper_tier`` is what each process
runs, and what ``accelerate launch --num_machines`` or a Slurm script start themselves. See docs/paper_tier.md.
"""
