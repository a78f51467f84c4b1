"""Plug-ins for the engines that serve CLIP. Each is imported by name, and only with its engine.

    clipproj.plugins.attach                 transformers, open_clip, OpenAI's clip: a live model
    clipproj.plugins.sentence_transformers  a module for its pipeline, and its Dense
    clipproj.plugins.vllm                   the pooling head, with a tenant for each request
    clipproj.plugins.infinity               infinity's engine, with a tenant for each request

With a bank, nothing goes through unedited by mistake: a call that does not say whose its rows are,
or says it for another number of rows, raises.
"""

from clipproj.plugins.head import ProjectedHead, ProjectedTower

__all__ = ["ProjectedHead", "ProjectedTower"]
