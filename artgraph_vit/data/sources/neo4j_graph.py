"""ArtGraph straight from a Neo4j server that holds its dump (needs `pip install 'artgraph_vit[neo4j]'`).

Read over Bolt: the `Artwork` nodes, whose `name` is that of their file, and the edges createdBy, hasStyle, hasGenre,
about and madeOf to the nodes that are their labels. Who logs in is said by NEO4J_USERNAME and NEO4J_PASSWORD, the
database, where it is not the server's default, by NEO4J_DATABASE.
"""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset

from ...tasks import Task
from .graph import rows_of_graph
from .rows import DataError, ReadingOptions

SCHEMES = ("neo4j://", "neo4j+s://", "neo4j+ssc://", "bolt://", "bolt+s://", "bolt+ssc://")
_ARTWORKS = "MATCH (artwork:Artwork) RETURN artwork.name AS artwork"
_EDGES = "MATCH (artwork:Artwork)-[:{}]->(label:{}) RETURN artwork.name AS artwork, label.name AS label"
RELATIONS = {  # the edge, and the label of the nodes that it leads to
    "artist": ("createdBy", "Artist"),
    "style": ("hasStyle", "Style"),
    "genre": ("hasGenre", "Genre"),
    "tags": ("about", "Tag"),
    "media": ("madeOf", "Media"),
}


def is_neo4j(source: str) -> bool:
    return source.startswith(SCHEMES)


def read_neo4j(uri: str, options: ReadingOptions, images: Path | None) -> tuple[Dataset, list[Task]]:
    """Raw rows of the graph that the server at `uri` holds, with the pictures in the folder `images`.

    Raises:
        DataError: if the server cannot be reached or lets nobody in, or a node has no name.
    """
    try:
        import neo4j
        from neo4j.exceptions import DriverError, Neo4jError
    except ImportError as error:
        raise DataError("To read from Neo4j, install its driver: pip install 'artgraph_vit[neo4j]'.") from error
    if images is None:
        raise DataError(f"{uri} holds no pictures: name their folder by image_folder.")
    user = os.environ.get("NEO4J_USERNAME")
    login = (user, os.environ.get("NEO4J_PASSWORD", "")) if user else None
    try:
        database = os.environ.get("NEO4J_DATABASE") or None
        with (
            neo4j.GraphDatabase.driver(uri, auth=login) as driver,
            driver.session(database=database, default_access_mode=neo4j.READ_ACCESS) as session,
        ):
            names = [record["artwork"] for record in session.run(_ARTWORKS)]
            labels: dict[str, dict[str, list[str]]] = {}
            for task, (relation, node_label) in RELATIONS.items():
                for record in session.run(_EDGES.format(relation, node_label)):
                    labels_of = labels.setdefault(task, {}).setdefault(record["artwork"], [])
                    labels_of.append(record["label"])
    except (DriverError, Neo4jError, OSError, ValueError) as error:
        raise DataError(
            f"The graph at {uri} cannot be read: {' '.join(str(error).split())} "
            "Check the address, NEO4J_USERNAME, NEO4J_PASSWORD and NEO4J_DATABASE."
        ) from error
    nameless = [name for name in names if not isinstance(name, str)]
    nameless += [
        label
        for edges in labels.values()
        for found in edges.values()
        for label in found
        if not (label and isinstance(label, str))
    ]
    if nameless:
        raise DataError(
            f"In the graph at {uri}, {len(nameless)} nodes have no property 'name' with a string: give them one."
        )
    return rows_of_graph(uri, names, labels, images, images.parent / "splits", options)
