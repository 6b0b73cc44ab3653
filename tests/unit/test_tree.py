"""Sums that have the same bits, whoever summed what: the tree, and the maps whose contributors are nodes of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.aggregation.map import Contributor, Map, Routes, leaves
from psgc.aggregation.slices import Slice
from psgc.aggregation.tree import Tree, end_of_nodes, leaf, nodes_of, parent, sibling, size
from psgc.backend import Backend
from psgc.server.copies import Accumulators
from psgc.workers.encoder import Encoder


def total(vectors):
    tree = Tree()
    for chunk, vector in enumerate(vectors):
        tree.add(chunk, vector.copy())
    return tree.total()


@st.composite
def shares(draw):
    """Which rank, from 1 on, has each chunk."""
    ranks = draw(st.integers(1, 5))
    return draw(st.lists(st.integers(1, ranks), min_size=1, max_size=40))


@given(chunks=st.sets(st.integers(0, 40), min_size=1))
def test_nodes_are_the_largest_that_have_these_chunks_and_no_others(chunks):
    nodes = nodes_of(chunks)
    spans = [range((node - size(node)) // 2, (node + size(node)) // 2) for node in nodes]
    assert sorted(chunk for span in spans for chunk in span) == sorted(chunks)
    assert all(span.start % len(span) == 0 for span in spans)
    assert not any(sibling(node) in nodes for node in nodes)
    assert all(0 < node < end_of_nodes(max(chunks) + 1) for node in nodes)


@given(of_chunks=shares(), order=st.randoms(use_true_random=False))
def test_the_bits_do_not_depend_on_who_has_which_chunk_nor_on_the_order(of_chunks, order):
    vectors = np.random.default_rng(len(of_chunks)).normal(size=(len(of_chunks), 3))
    trees = {rank: Tree() for rank in of_chunks}
    chunks = [*enumerate(of_chunks)]
    order.shuffle(chunks)
    for chunk, rank in chunks:
        trees[rank].add(chunk, vectors[chunk].copy())
    nodes = [(node, sum) for tree in trees.values() for node, sum in tree.nodes.items()]
    order.shuffle(nodes)
    together = Tree()
    for node, sum in nodes:
        together.add_node(node, sum)
    assert together.total().tobytes() == total(vectors).tobytes()


def test_a_sum_in_the_order_of_chunks_has_other_bits():
    vectors = np.random.default_rng(0).normal(size=(24, 100))
    assert total(vectors).tobytes() != vectors.sum(axis=0).tobytes()


# what is shared out


def test_what_a_worker_has_committed_in_several_roles_makes_up_nodes():
    it = Accumulators(in_nodes=True)
    for chunk, role in ((0, 1), (1, 2), (2, 1), (4, 1)):
        it.add((1, role), chunk, 0)
    it.add((2, 2), 3, 0)
    assert it.share() == ((1, 2, 0), (1, 5, 0), (1, 9, 0), (2, 7, 0))
    it.add((2, 1), 5, 1)  # its sibling was shared out, and does not change any more
    assert it.share() == ((1, 2, 0), (1, 5, 0), (1, 9, 0), (2, 7, 0), (2, 11, 1))


def test_an_encoder_has_the_nodes_that_its_worker_shares_out():
    encoder, gradients = Encoder(Backend(), np.ones((2, 1)), 3, "float64", in_nodes=True), np.eye(6, 3)
    for chunk, serial in ((0, 0), (1, 0), (4, 0), (5, 1)):
        encoder.add(gradients[chunk].copy(), (1,), 1, serial, chunk)
    found = encoder.accumulators
    assert found.keys() == {(2, 0), (9, 0), (11, 1)}
    np.testing.assert_array_equal(found[2, 0], [1, 1, 0])
    encoder.begin()
    assert not encoder.accumulators


# maps


@given(of_chunks=shares(), hosts=st.lists(st.integers(0, 2), min_size=6, max_size=6), attempt=st.integers(0, 1))
def test_every_block_is_the_sum_of_the_same_tree_whoever_has_which_chunk_on_whichever_host(of_chunks, hosts, attempt):
    ranks = range(6)
    nodes = {rank: nodes_of(chunk for chunk, of in enumerate(of_chunks) if of == rank) for rank in ranks}
    contributors = tuple(Contributor(rank, node, 0) for rank in ranks for node in nodes[rank])
    slices = tuple(Slice(rank, 2 * rank, 2 * rank + 2) for rank in ranks)
    routes = Routes(Map(0, attempt, tuple(ranks), contributors, slices, tuple(hosts), in_nodes=True), 1)

    def node(term, sums):
        """That a term sums up. sums: whether what another host sends is its sum of others."""
        if not isinstance(term, Contributor):
            one, other = (node(part, sums) for part in term)
            assert sibling(one) == other
            return parent(one)
        if sums and term not in contributors:
            assert node(routes.terms_of_host(term), False) == term.role
        return term.role

    for number, block in enumerate(routes.blocks):
        terms = routes.terms(number)
        assert [node(term, True) for term in terms] == [*left_of(len(of_chunks))]
        far = {one for one in leaves(terms) if not routes.is_near(one.rank, block.owner) and one.rank != block.owner}
        assert routes.awaited(number) == far
        sent = {one for rank in ranks for what, one in routes.coded_sends(rank) if what == number}
        assert far <= sent


def left_of(chunks):
    tree = Tree(lambda one, other: parent(min(one, other)))
    for chunk in range(chunks):
        tree.add(chunk, leaf(chunk))
    return tree.remaining()


@pytest.mark.parametrize("chunks", [1, 2, 3, 8, 13])
def test_what_is_left_of_all_chunks_follows_from_their_number(chunks):
    assert [size(node) for node in left_of(chunks)] == [1 << bit for bit in range(4) if chunks >> bit & 1]
