"""LineageService."""

from animus.codec import encode
from animus.domain.errors import NotFound, invalid
from animus.domain.lineage import MAX_DEPTH, MAX_NODES, LineageEdge
from animus.domain.names import check_length, check_within, project_name
from animus.service.calls import Caller
from animus.store.unit_of_work import UnitOfWork, View
from animus.v1 import lineage_pb2 as pb

DEFAULT_DEPTH = 100
DEFAULT_NODES = 1_000
MAX_EDGES = 100_000  # read in one level


class LineageService:
    """Walks lineage breadth-first, with one statement for each level."""

    def __init__(self, work: UnitOfWork) -> None:
        self.work = work

    async def GetLineage(self, request: pb.GetLineageRequest, caller: Caller) -> pb.Lineage:
        """Walks from one node until nothing is new, or a limit is reached, which the answer says."""
        check_length(request.node, 1, 2_000, "node")
        if not request.node.startswith(project_name(request.project_id) + "/"):
            raise invalid("node", f"is no full name within {project_name(request.project_id)}")
        if request.direction not in (pb.LINEAGE_DIRECTION_UPSTREAM, pb.LINEAGE_DIRECTION_DOWNSTREAM):
            raise invalid("direction", "is unspecified or unknown; give UPSTREAM or DOWNSTREAM")
        check_within(request.max_depth, 0, MAX_DEPTH, "maxDepth")
        check_within(request.max_nodes, 0, MAX_NODES, "maxNodes")
        max_depth = request.max_depth or DEFAULT_DEPTH
        max_nodes = request.max_nodes or DEFAULT_NODES
        upstream = request.direction == pb.LINEAGE_DIRECTION_UPSTREAM

        async def query(view: View) -> pb.Lineage:
            depths = {request.node: 0}
            edges: set[LineageEdge] = set()
            frontier, depth, truncated = [request.node], 0, False
            while frontier:
                found = await view.edges(frontier, upstream=upstream, limit=MAX_EDGES)
                truncated |= len(found) == MAX_EDGES
                if depth == max_depth:
                    truncated |= bool(found)
                    break
                depth += 1
                frontier = []
                for edge in found:
                    node = edge.object if upstream else edge.subject
                    if node not in depths:
                        if len(depths) == max_nodes:
                            truncated = True
                            continue
                        depths[node] = depth
                        frontier.append(node)
                    edges.add(edge)
            if not edges and not truncated and not await view.edges([request.node], upstream=not upstream, limit=1):
                raise NotFound(
                    "LINEAGE_NODE_UNKNOWN", "no edge touches a node of this name", kind="LineageNode", name=request.node
                )
            reply = pb.Lineage(truncated=truncated)
            for name, node_depth in sorted(depths.items(), key=lambda item: (item[1], item[0])):
                reply.nodes.add(name=name, depth=node_depth)
            for edge in sorted(edges, key=lambda e: (e.subject, e.relation, e.object)):
                encode(edge, reply.edges.add())
            return reply

        return await self.work.read(request.project_id, query)
