"""A simulated population of users of a command-line tool, from which ``tkserver demo`` takes its events.

Pure: no reactor, no database, no clock. Randomness is an argument, so the same seed gives the same events.

.. code:: python

    parameters = Parameters(events=50_000, users=2_000, days=90)
    population = Population(parameters, until=datetime.now(timezone.utc), rng=seeded(parameters, 1))
    for event in population.events():
        print(event.received, event.origin.user_id, event.data)
"""

from tkserver.demo.population import Origin, Parameters, Population, Regression, SampleEvent, seeded

__all__ = ["Origin", "Parameters", "Population", "Regression", "SampleEvent", "seeded"]
