"""Value models across packages: ours inside its_hub and genlm-control, theirs inside our sampler.

Importing this package imports neither of them; each module imports its own when it is imported itself
(``pip install 'rmtools[its-hub]'``, ``'rmtools[genlm]'``, or both with ``'rmtools[adapters]'``).

======================  ===============================  ==================================
module                  ours inside theirs               theirs inside ours
======================  ===============================  ==================================
``adapters.its_hub``    ``ItsHubReward(value)``          ``ItsHubScorer(reward_model, ...)``
``adapters.genlm``      ``ValuePotential(value, ...)``,  ``GenlmScorer(potential, ...)``
                        ``PolicyPotential(policy, ...)``
======================  ===============================  ==================================
"""
