"""The paper's experiments, one file each: functions on any model and pictures."""
