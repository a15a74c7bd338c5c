"""Studies: one recipe in many variants and seeds, run, resumed and put into a table.

`runs` goes through the runs of a study, `sharing` saves them what others have computed, `baselines`
are the methods that take the place of stage 1, and `summary` makes the table.
"""

from terralign.ablate.runs import StudyResult as StudyResult
from terralign.ablate.runs import run_study as run_study
