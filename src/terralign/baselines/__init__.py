"""Rivals of stage 1 on its data, its batches and its budget: prompt learning (CoOp) and LP-FT."""
