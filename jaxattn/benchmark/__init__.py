"""Fair tables: ours beside what people use today, on the same machine, in the same run."""
