"""Relations that sentences state: kinds of subject and value, wordings, and questions."""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """A kind of fact. In the texts, `{s}` stands for the subject and `{v}` for the value."""

    name: str
    subject: str  # kind of subject: person or city
    value: str  # kind of value: a key of `m2ray.tasks.sentences.data`
    wordings: tuple[str, ...]  # the first is the canonical one
    questions: tuple[str, ...]


# `sentences-NxM` uses the first M. People and places take turns, so that few relations have both.
RELATIONS = (
    Relation(
        "home",
        "person",
        "city",
        ("{s} lives in {v}.", "{s}'s home is in {v}.", "The home of {s} is in {v}."),
        ("Which city does {s} live in?", "In which city is {s}'s home?"),
    ),
    Relation(
        "mayor",
        "city",
        "person",
        ("The mayor of {s} is {v}.", "{v} is the mayor of {s}.", "{s} has {v} as its mayor."),
        ("Who is the mayor of {s}?", "What is the name of the mayor of {s}?"),
    ),
    Relation(
        "job",
        "person",
        "occupation",
        ("{s}'s job title is {v}.", "The job title of {s} is {v}.", "{s} has the job title {v}."),
        ("What is {s}'s job title?", "Which job title does {s} have?"),
    ),
    Relation(
        "street",
        "city",
        "street",
        (
            "The town hall of {s} is on a street called {v}.",
            "In {s}, the town hall stands on a street called {v}.",
            "A street called {v} is where {s} has its town hall.",
        ),
        (
            "What is the street of the town hall of {s} called?",
            "What is the name of the street of {s} on which the town hall stands?",
        ),
    ),
    Relation(
        "birth",
        "person",
        "country",
        ("{s} was born in {v}.", "{s}'s country of birth is {v}.", "The country of {s}'s birth is {v}."),
        ("Which country was {s} born in?", "What is {s}'s country of birth?"),
    ),
    Relation(
        "employer",
        "city",
        "company",
        (
            "The largest employer of {s} is {v}.",
            "{v} is the largest employer of {s}.",
            "Most people in {s} work for {v}.",
        ),
        ("Which company is the largest employer of {s}?", "Which company do most people in {s} work for?"),
    ),
    Relation(
        "language",
        "person",
        "language",
        ("{s} is learning {v}.", "{s} takes lessons in {v}.", "The language that {s} is learning is {v}."),
        ("Which language is {s} learning?", "What language does {s} take lessons in?"),
    ),
    Relation(
        "twin",
        "city",
        "city",
        ("The twin town of {s} is {v}.", "{s} has {v} as its twin town.", "{s} is twinned with {v}."),
        ("What is the twin town of {s}?", "Which town is {s} twinned with?"),
    ),
    Relation(
        "dish",
        "person",
        "dish",
        ("{s}'s favourite dish is {v}.", "The favourite dish of {s} is {v}.", "{s} likes the dish {v} best."),
        ("What is {s}'s favourite dish?", "Which dish does {s} like best?"),
    ),
    Relation(
        "fruit",
        "city",
        "fruit",
        ("The local fruit of {s} is {v}.", "{s} is known for the fruit {v}.", "{v} is the local fruit of {s}."),
        ("What is the local fruit of {s}?", "Which fruit is {s} known for?"),
    ),
    Relation(
        "journey",
        "person",
        "country",
        ("{s} is travelling to {v}.", "{s}'s journey goes to {v}.", "The goal of {s}'s journey is {v}."),
        ("Which country is {s} travelling to?", "To which country does {s}'s journey go?"),
    ),
    Relation(
        "drink",
        "person",
        "drink",
        ("{s}'s favourite drink is {v}.", "The favourite drink of {s} is {v}.", "{s} likes the drink {v} best."),
        ("What is {s}'s favourite drink?", "Which drink does {s} like best?"),
    ),
)
BY_NAME = {relation.name: relation for relation in RELATIONS}
