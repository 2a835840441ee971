"""What a cosine of a model means: measured on questions and passages that come with the project.

Models differ: two texts that have nothing to do with each other have a cosine of 0.05 with one and of 0.7 with another.
The mean cosine of these questions with their own passages, and with those of the others, give every model's cosines the
same scale.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from shared.collections import Calibration

Matrix = Any

PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("How long do I have to return a purchase?",
     "Items may be sent back within thirty days of delivery. The refund is paid to the card that was used for the order."),
    ("What causes tides?",
     "The gravity of the moon, and to a lesser degree that of the sun, raises the water of the oceans twice a day."),
    ("how to reset a forgotten password",
     "Choose “Forgot password” on the sign-in page. We send a link by mail that is valid for one hour; it lets you set a new one."),
    ("At what temperature should bread be baked?",
     "Preheat the oven to 230 degrees and bake the loaf for 35 minutes, until the crust is dark and the bottom sounds hollow."),
    ("Who is liable for damage in transit?",
     "The seller bears the risk of loss until the goods are handed to the buyer; the carrier's insurance covers breakage on the way."),
    ("side effects of ibuprofen",
     "The medicine can upset the stomach, raise blood pressure and, with long use, harm the kidneys. Take it with food."),
    ("What does the warranty not cover?",
     "Wear, scratches and damage by water or falls are excluded. The guarantee ends when the device is opened by others than our workshop."),
    ("When was the bridge built?",
     "Construction of the crossing began in 1929 and took four years; it was opened to traffic in the spring of 1933."),
    ("maximum file size for uploads",
     "An attachment may have up to 25 megabytes. Larger files are refused with an error and have to be split."),
    ("How do bees find their way home?",
     "Foragers steer by the position of the sun and by landmarks near the hive, and tell the others the direction by a dance."),
    ("notice period for ending a tenancy",
     "The tenant may terminate the lease with three months' notice to the end of a month; it has to be given in writing."),
    ("Why is my internet connection slow in the evening?",
     "Many households share the capacity of a street cabinet. At peak hours the speed falls, which is called contention."),
    ("How is overtime paid?",
     "Hours beyond forty a week are compensated with one and a half times the wage, or with time off if both sides agree."),
    ("What is photosynthesis?",
     "Plants use the energy of light to turn carbon dioxide and water into sugar, and give off oxygen."),
    ("configure a proxy for the command line tool",
     "Set the environment variable HTTPS_PROXY to the address of the server; the client sends all its requests through it."),
    ("Which documents are needed for a visa?",
     "Applicants submit a valid passport, two photographs, a bank statement of the last three months and the booking of the return flight."),
    ("how often should engine oil be changed",
     "Replace the lubricant of the motor every 15,000 kilometres or once a year, whichever comes first."),
    ("What did the board decide about the dividend?",
     "The directors propose to pay shareholders 42 cents a share, six cents more than in the previous year."),
    ("Can I cancel my subscription at any time?",
     "The plan may be ended whenever you like in the account settings; it then runs to the end of the month that is paid for."),
    ("symptoms of low blood sugar",
     "Patients become pale and shaky, sweat, feel hungry and cannot concentrate; glucose or juice helps within minutes."),
    ("How far away is the nearest star?",
     "Apart from the sun, Proxima Centauri is closest to us: its light travels for a little more than four years."),
    ("error connection refused port 5432",
     "The database server does not accept TCP connections on its usual port. Check that it runs and listens on the right interface."),
    ("What is the population of the city?",
     "At the last census 612,000 people lived within the municipal borders, and 1.4 million in the region around it."),
    ("When do the clocks change?",
     "Daylight saving time begins on the last Sunday of March at two in the morning and ends on the last Sunday of October."),
)  # fmt: skip


def texts(query_prefix: str, document_prefix: str) -> list[str]:
    """What is to be embedded: the questions, then the passages."""
    return [query_prefix + question for question, _ in PAIRS] + [document_prefix + passage for _, passage in PAIRS]


def measure(vectors: Matrix) -> Calibration:
    """The calibration, from the vectors of `texts` (rows of length one)."""
    count = len(PAIRS)
    cosines = vectors[:count] @ vectors[count:].T
    related = float(np.mean(np.diag(cosines)))
    unrelated = float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
    return Calibration(round(unrelated, 5), round(max(related, unrelated + 0.01), 5), vectors.shape[1])
