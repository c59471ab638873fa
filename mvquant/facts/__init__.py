"""Well-known facts as tables, and the questions that are made of them.

    tables/<topic>.csv -> check_facts -> yes_no_items | conflict_items

A row is a fact: relation, subject, object, and other objects (`also`) with which the statement would be true too,
so that nobody takes them for false. `python -m mvquant.facts.write` writes the yes/no sets of `eval/data/`.
"""

from mvquant.facts.conflict import conflict_items
from mvquant.facts.table import TOPICS, Fact, Topic, check_facts, read_facts
from mvquant.facts.yes_no import yes_no_items

__all__ = ["TOPICS", "Fact", "Topic", "check_facts", "conflict_items", "read_facts", "yes_no_items"]
