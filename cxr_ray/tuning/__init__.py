"""Search over whole trainings: a sweep file says what is varied and by what measure; Ray Tune runs the trials that Optuna proposes."""
