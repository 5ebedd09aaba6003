"""Formulas of more than one device against what they describe.

Oracles: collectives played through message by message on real numbers, with a clock and a count of bytes; networks and
processors as event simulations; pipeline schedules executed operation by operation; a transformer block split over
ranks, with autograd; PyTorch's DistributedSampler; gradients with a known covariance; lifetimes drawn at random;
scipy's minimum of the exact expected time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from efflab.formulas import parallelism as p
from efflab.site.diagrams import execute

ranks = st.integers(1, 9)
many = st.integers(2, 9)
times = st.floats(1e-4, 10)
bandwidths = st.floats(1e6, 1e12)
latencies = st.floats(0, 1e-2)
same = dict(rel_tol=1e-9, abs_tol=1e-15)


# Collectives


@dataclass
class Network:
    """Links of one bandwidth and latency. All messages of a step travel at once; bytes are counted by sender."""

    bandwidth: float
    latency: float
    clock: float = 0.0
    sent: dict | None = None

    def step(self, messages):
        """Deliver {(sender, receiver): array}; every rank sends and receives one message at most."""
        assert len({s for s, _ in messages}) == len(messages) == len({r for _, r in messages})
        self.sent = self.sent or {}
        for (sender, _), data in messages.items():
            self.sent[sender] = self.sent.get(sender, 0) + data.nbytes
        self.clock += self.latency + max(data.nbytes for data in messages.values()) / self.bandwidth
        return {receiver: data.copy() for (_, receiver), data in messages.items()}


def reduce_scatter(network, group, chunks):
    """Chunk lists of a group's ranks on a ring; afterwards rank i of the group holds the sum of chunk i + 1."""
    n = len(group)
    for turn in range(n - 1):
        arrived = network.step({(group[i], group[(i + 1) % n]): chunks[group[i]][(i - turn) % n] for i in range(n)})
        for i in range(n):
            chunks[group[i]][(i - turn - 1) % n] += arrived[group[i]]


def all_gather(network, group, chunks):
    """The second half: rank i of the group starts with chunk i + 1, and all end with all of them."""
    n = len(group)
    for turn in range(n - 1):
        arrived = network.step({(group[i], group[(i + 1) % n]): chunks[group[i]][(i + 1 - turn) % n] for i in range(n)})
        for i in range(n):
            chunks[group[i]][(i - turn) % n] = arrived[group[i]]


def split(arrays, n):
    return {rank: [c.copy() for c in np.split(a, n)] for rank, a in arrays.items()}


def numbers(n, size, seed=0):
    """An array of integers for each of n ranks, so that sums are exact."""
    rng = np.random.default_rng(seed)
    return {rank: rng.integers(-1000, 1000, size).astype(np.float64) for rank in range(n)}


def ring(n, size, bandwidth, latency):
    """An all-reduce on a ring of n ranks, of n · size numbers; returns its network after each half."""
    arrays = numbers(n, n * size)
    chunks, network = split(arrays, n), Network(bandwidth, latency, sent=dict.fromkeys(range(n), 0))
    reduce_scatter(network, range(n), chunks)
    for rank in range(n):
        owned = (rank + 1) % n
        assert np.array_equal(chunks[rank][owned], sum(np.split(a, n)[owned] for a in arrays.values()))
    half = network.clock
    all_gather(network, range(n), chunks)
    for rank in range(n):
        assert np.array_equal(np.concatenate(chunks[rank]), sum(arrays.values()))
    return network, half


@given(ranks, st.integers(1, 5), bandwidths, latencies)
def test_ring_all_reduce_message_by_message(n, size, bandwidth, latency):
    network, half = ring(n, size, bandwidth, latency)
    message = dict(message_bytes=8.0 * n * size, ranks=n)
    link = dict(bandwidth=bandwidth, latency=latency)
    for rank in range(n):
        assert network.sent[rank] == pytest.approx(p.all_reduce_traffic(**message))
    assert math.isclose(p.ring_all_reduce_time(**message, **link), network.clock, **same)
    assert math.isclose(p.ring_gather_time(**message, **link), half, **same)


@given(st.integers(0, 4), st.integers(1, 3), bandwidths, latencies)
def test_halving_and_doubling_message_by_message(doublings, size, bandwidth, latency):
    """Each rank keeps the half that it sums, until it has one nth; then the halves come back."""
    n = 2**doublings
    arrays = numbers(n, n * size)
    network = Network(bandwidth, latency, sent=dict.fromkeys(range(n), 0))
    held = {rank: (0, n * size) for rank in range(n)}
    data = {rank: a.copy() for rank, a in arrays.items()}
    for bit in reversed(range(doublings)):
        messages, keep = {}, {}
        for rank in range(n):
            low, high = held[rank]
            middle, upper = (low + high) // 2, rank >> bit & 1
            keep[rank] = (middle, high) if upper else (low, middle)
            sent = (low, middle) if upper else (middle, high)
            messages[rank, rank ^ 1 << bit] = data[rank][slice(*sent)]
        for rank, arrived in network.step(messages).items():
            data[rank][slice(*keep[rank])] += arrived
        held = keep
    for bit in range(doublings):
        messages = {(rank, rank ^ 1 << bit): data[rank][slice(*held[rank])] for rank in range(n)}
        arrived, before = network.step(messages), dict(held)
        for rank in range(n):
            other = before[rank ^ 1 << bit]
            data[rank][slice(*other)] = arrived[rank]
            held[rank] = (min(before[rank][0], other[0]), max(before[rank][1], other[1]))
    assert all(np.array_equal(d, sum(arrays.values())) for d in data.values())
    message = dict(message_bytes=8.0 * n * size, ranks=n)
    assert all(sent == pytest.approx(p.all_reduce_traffic(**message)) for sent in network.sent.values())
    ours = p.halving_doubling_all_reduce_time(**message, bandwidth=bandwidth, latency=latency)
    assert math.isclose(ours, network.clock, **same)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), bandwidths, bandwidths)
def test_an_all_reduce_in_and_between_nodes_message_by_message(in_node, nodes, size, bandwidth, network_bandwidth):
    """Reduce-scatter within each node, all-reduce of each part between nodes, all-gather within each node."""
    n = in_node * nodes
    arrays = numbers(n, n * size)
    chunks = split(arrays, in_node)
    inside = [range(k * in_node, (k + 1) * in_node) for k in range(nodes)]
    clocks = []
    for group in inside:
        network = Network(bandwidth, 0.0)
        reduce_scatter(network, group, chunks)
        clocks.append(network.clock)
    across = []
    for local in range(in_node):
        group, owned = [k * in_node + local for k in range(nodes)], (local + 1) % in_node
        parts = split({rank: chunks[rank][owned] for rank in group}, nodes)
        network = Network(network_bandwidth, 0.0)
        reduce_scatter(network, group, parts)
        all_gather(network, group, parts)
        for rank in group:
            chunks[rank][owned] = np.concatenate(parts[rank])
        across.append(network.clock)
    for k, group in enumerate(inside):
        network = Network(bandwidth, 0.0)
        all_gather(network, group, chunks)
        clocks[k] += network.clock
    assert all(np.array_equal(np.concatenate(c), sum(arrays.values())) for c in chunks.values())
    ours = p.hierarchical_all_reduce_time(
        message_bytes=8.0 * n * size,
        ranks_per_node=in_node,
        nodes=nodes,
        bandwidth=bandwidth,
        network_bandwidth=network_bandwidth,
        overlap=0,
    )
    assert math.isclose(ours, max(clocks) + max(across), **same)


@given(st.integers(2, 8), st.integers(2, 8), st.floats(1e9, 1e12), st.floats(1e9, 1e12))
def test_chunks_of_a_message_on_their_way_through_node_network_and_node(in_node, nodes, bandwidth, network_bandwidth):
    """Many chunks, one after another through three stations; the first and the last of them share a node's links."""
    size, chunks = 1e9, 1000
    link = (in_node - 1) / in_node * size / chunks / bandwidth  # a reduce-scatter or an all-gather of a chunk
    network = 2 * (nodes - 1) / nodes * size / chunks / in_node / network_bandwidth
    link_free = network_free = 0.0
    ready = []  # when each chunk is back from the network
    for _ in range(chunks):
        while ready and ready[0] <= link_free:  # a finished chunk goes first: the links never wait for one
            ready.pop(0)
            link_free += link
        link_free += link
        network_free = max(network_free, link_free) + network
        ready.append(network_free)
    for back in ready:
        link_free = max(link_free, back) + link
    node = dict(message_bytes=size, ranks_per_node=in_node, nodes=nodes)
    rates = dict(bandwidth=bandwidth, network_bandwidth=network_bandwidth)
    ours = p.hierarchical_all_reduce_time(**node, **rates, overlap=1)
    assert math.isclose(ours, link_free, rel_tol=0.02)
    ends = [p.hierarchical_all_reduce_time(**node, **rates, overlap=o) for o in (0, 1)]
    between = p.hierarchical_all_reduce_time(**node, **rates, overlap=0.25)
    assert math.isclose(between, 0.75 * ends[0] + 0.25 * ends[1], rel_tol=1e-9)


def through_adapters(rings, per_node, nodes, size, bandwidth, network_bandwidth):
    """Time of an all-reduce on several rings at once: sums and bytes of every link, message by message.

    Ring i enters each node at its rank i and leaves it at the rank before, so that no two rings share an adapter in one
    direction. A rank sends the messages of all rings no faster than its link, and those that leave the node no faster
    than its adapter; a step ends with its last message.
    """
    n = per_node * nodes
    arrays = numbers(n, rings * n * size)
    parts = {rank: np.split(a, rings) for rank, a in arrays.items()}
    clock = 0.0
    orders, held = [], []
    for i in range(rings):
        orders.append([k * per_node + (i + r) % per_node for k in range(nodes) for r in range(per_node)])
        held.append(split({rank: parts[rank][i] for rank in range(n)}, n))
    for turn in range(2 * (n - 1)):
        from_rank, adapters = dict.fromkeys(range(n), 0), {}
        for i, order in enumerate(orders):
            messages = {}
            for at in range(n):
                sender, receiver = order[at], order[(at + 1) % n]
                # A reduce-scatter, then an all-gather: what the receiver adds or puts in place.
                chunk = (at - turn) % n if turn < n - 1 else (at + 1 - (turn - n + 1)) % n
                data = held[i][sender][chunk].copy()
                messages[receiver] = (chunk, data)
                from_rank[sender] += data.nbytes
                if sender // per_node != receiver // per_node:
                    for way in ((sender, "out"), (receiver, "in")):
                        adapters[way] = adapters.get(way, 0) + data.nbytes
            for receiver, (chunk, data) in messages.items():
                if turn < n - 1:
                    held[i][receiver][chunk] += data
                else:
                    held[i][receiver][chunk] = data
        clock += max(max(from_rank.values()) / bandwidth, max(adapters.values(), default=0) / network_bandwidth)
    total = sum(arrays.values())
    for rank in range(n):
        assert np.array_equal(np.concatenate([np.concatenate(held[i][rank]) for i in range(rings)]), total)
    return clock, arrays[0].nbytes


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), bandwidths, bandwidths)
def test_rings_of_a_group_share_the_adapters_of_its_nodes(per_node, nodes, size, bandwidth, network_bandwidth):
    """As many rings as the group has ranks in a node; with the stride of others between them, fewer."""
    rates = dict(bandwidth=bandwidth, network_bandwidth=network_bandwidth)
    clock, message = through_adapters(per_node, per_node, nodes, size, **rates)
    n = per_node * nodes
    for stride in (1, 3):
        group = p.group_bandwidth(group=n, stride=stride, ranks_per_node=per_node * stride, **rates)
        ours = p.ring_all_reduce_time(message_bytes=message, ranks=n, bandwidth=group, latency=0)
        assert math.isclose(ours, clock, **same)


def test_one_ring_and_one_rank_in_each_node_run_at_one_adapter():
    rates = dict(bandwidth=450e9, network_bandwidth=50e9)
    one, message = through_adapters(1, 4, 3, 1, **rates)
    assert one == pytest.approx(p.ring_all_reduce_time(message_bytes=message, ranks=12, bandwidth=50e9, latency=0))
    four, message = through_adapters(4, 4, 3, 1, **rates)
    assert four == pytest.approx(p.ring_all_reduce_time(message_bytes=message, ranks=12, bandwidth=200e9, latency=0))
    apart = p.group_bandwidth(group=12, stride=16, ranks_per_node=8, **rates)
    assert apart == 50e9


def test_published_all_reduces_over_nodes_lie_near_the_model():
    """Logs of nccl-tests on large messages: bus bandwidth, ranks in a node, nodes, link, adapter of a rank.

    Rings reach nine tenths of their adapters. The tree over two nodes is faster than any ring could be, and has the
    time of the hierarchical all-reduce in small chunks.
    """
    for bus, nodes, link, adapter in ((376.71e9, 4, 900e9, 50e9), (188.54e9, 2, 450e9, 25e9)):
        rings = p.group_bandwidth(
            group=8 * nodes, stride=1, ranks_per_node=8, bandwidth=link, network_bandwidth=adapter
        )
        assert 0.9 < bus / rings < 1
    message, time = 2**33, 47535e-6  # 16 H100 in two nodes with adapters of 25 GB/s
    rates = dict(bandwidth=450e9, network_bandwidth=25e9)
    ring = p.group_bandwidth(group=16, stride=1, ranks_per_node=8, **rates)
    assert p.bus_bandwidth(message_bytes=message, time=time, ranks=16, collective="all-reduce") > 1.5 * ring
    tree = p.hierarchical_all_reduce_time(message_bytes=message, ranks_per_node=8, nodes=2, **rates, overlap=1)
    assert 0.9 < tree / time < 1


@given(many, st.integers(1, 5), bandwidths)
def test_bus_bandwidth_is_what_the_links_carry(n, size, bandwidth):
    """Without latency every collective on a ring reaches the link's bandwidth, whatever the number of ranks."""
    network, half = ring(n, size, bandwidth, 0.0)
    message = 8.0 * n * size
    reached = {"all-reduce": network.clock, "reduce-scatter": half, "all-gather": network.clock - half}
    # Every rank sends one nth to each of the others in turn.
    exchange = Network(bandwidth, 0.0)
    for distance in range(1, n):
        exchange.step({(r, (r + distance) % n): np.zeros(size) for r in range(n)})
    reached["all-to-all"] = exchange.clock
    # The root's link carries everything once; the others pass it on while it arrives.
    reached["broadcast"] = message / bandwidth
    for collective, time in reached.items():
        seen = p.bus_bandwidth(message_bytes=message, time=time, ranks=n, collective=collective)
        assert math.isclose(seen, bandwidth, rel_tol=1e-9)
        assert p.algorithm_bandwidth(message_bytes=message, time=time) == pytest.approx(message / time)
    assert p.bandwidth_per_direction(bidirectional_bandwidth=2 * bandwidth) == pytest.approx(bandwidth)


@given(many, st.integers(1, 50), bandwidths, st.floats(1e-7, 1e-2))
def test_half_of_the_bandwidth_is_reached_where_latency_takes_half_of_the_time(n, size, bandwidth, latency):
    network, _ = ring(n, size, bandwidth, 0.0)
    transfer = network.clock
    # Of messages in proportion, the one whose transfer takes as long as 2(n − 1) latencies.
    half = 8.0 * n * size * 2 * (n - 1) * latency / transfer
    ours = p.half_bandwidth_message(ranks=n, bandwidth=bandwidth, latency=latency)
    assert math.isclose(ours, half, rel_tol=1e-9)


# Data parallelism


def timeline(backward, buckets, communication, overlap):
    """How long after the backward pass the last of equal buckets is reduced, one after another on one network."""
    clock = 0.0
    for bucket in range(1, buckets + 1):
        ready = backward * bucket / buckets if overlap else backward
        clock = max(clock, ready) + communication / buckets
    return clock - backward


@given(times, times, st.integers(1, 40))
def test_communication_that_shows_bucket_by_bucket(backward, communication, buckets):
    for overlap in (0, 1):
        ours = p.exposed_communication_time(
            communication_time=communication, backward_time=backward, buckets=buckets, overlap=overlap
        )
        assert math.isclose(ours, timeline(backward, buckets, communication, overlap), rel_tol=1e-9, abs_tol=1e-12)
    between = p.exposed_communication_time(
        communication_time=communication, backward_time=backward, buckets=buckets, overlap=0.25
    )
    ends = [timeline(backward, buckets, communication, overlap) for overlap in (0, 1)]
    assert math.isclose(between, 0.75 * ends[0] + 0.25 * ends[1], rel_tol=1e-9)


@given(st.lists(times, min_size=3, max_size=3), times, st.integers(1, 40), st.booleans(), st.integers(1, 8))
def test_a_step_microbatch_by_microbatch(parts, communication, buckets, overlap, microbatches):
    forward, backward, update = parts
    clock = 0.0
    for _ in range(microbatches):
        clock += forward + backward
    clock += timeline(backward, buckets, communication, overlap) + update  # only the last is reduced
    ours = p.data_parallel_step_time(
        forward_time=forward,
        backward_time=backward,
        update_time=update,
        communication_time=communication,
        buckets=buckets,
        overlap=float(overlap),
        microbatches=microbatches,
    )
    assert math.isclose(ours, clock, rel_tol=1e-9)


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_buckets_by_filling_them(gradient, bucket):
    filled, left = 0, gradient
    while left > 0 and filled < 2000:
        filled, left = filled + 1, left - bucket
    assume(left <= 0)
    assert p.gradient_buckets(gradient_bytes=gradient, bucket_bytes=bucket) == filled


@settings(max_examples=40)
@given(many, st.integers(1, 30), st.integers(1, 10), bandwidths, latencies)
def test_bucketed_all_reduce_as_rings_one_after_another(n, size, per_bucket, bandwidth, latency):
    total, left = 0.0, size
    while left:
        here = min(per_bucket, left)
        total += ring(n, here, bandwidth, latency)[0].clock
        left -= here
    ours = p.bucketed_all_reduce_time(
        gradient_bytes=8.0 * n * size,
        bucket_bytes=8.0 * n * per_bucket,
        ranks=n,
        bandwidth=bandwidth,
        latency=latency,
    )
    assert math.isclose(ours, total, **same)


@given(many, times, st.floats(0, 10), st.integers(0, 8))
def test_all_ranks_wait_for_the_late_one(n, step, delay, late):
    begins = [delay if rank == late % n else 0.0 for rank in range(n)]
    assert math.isclose(p.straggler_step_time(step_time=step, delay=delay), max(begins) + step, rel_tol=1e-12)


@given(many, times, times, st.integers(1, 1000))
def test_efficiency_by_counting_samples(n, one, many_time, batch):
    """Samples per second and rank. Weak scaling: every rank takes the batch; strong scaling: they share it."""
    alone = batch / one
    for scaling, samples in (("weak", n * batch), ("strong", batch)):
        each = samples / many_time / n
        ours = p.scaling_efficiency(time_one=one, time_many=many_time, ranks=n, scaling=scaling)
        assert math.isclose(ours, each / alone, rel_tol=1e-9)
        rates = dict(throughput_one=alone, throughput_many=samples / many_time, ranks_one=1, ranks_many=n)
        assert math.isclose(p.throughput_efficiency(**rates), ours, rel_tol=1e-9)


@settings(max_examples=40)
@given(many, st.integers(1, 12), bandwidths, latencies, st.lists(times, min_size=3, max_size=3), st.booleans())
def test_scaling_as_a_timeline_of_rings(n, buckets, bandwidth, latency, parts, overlap):
    forward, backward, update = parts
    reduced = ring(n, 1, bandwidth, latency)[0].clock * buckets
    link = dict(gradient_bytes=8.0 * n * buckets, bucket_bytes=8.0 * n, bandwidth=bandwidth, latency=latency)
    given = dict(forward_time=forward, backward_time=backward, update_time=update, overlap=float(overlap)) | link
    for scaling, share in (("weak", 1), ("strong", n)):
        clock = (forward + backward) / share + timeline(backward / share, buckets, reduced, overlap) + update
        ours = p.scaled_step_time(ranks=n, scaling=scaling, **given)
        assert math.isclose(ours, clock, rel_tol=1e-9)
        work = n if scaling == "weak" else 1  # batches of one rank alone
        efficiency = work * (forward + backward + update) / (n * clock)
        assert math.isclose(p.scaled_efficiency(ranks=n, scaling=scaling, **given), efficiency, rel_tol=1e-9)


def test_one_rank_alone_has_an_efficiency_of_one():
    alone = p.scaled_efficiency(
        ranks=1, forward_time=0.1, backward_time=0.2, update_time=0.01, gradient_bytes=1e9, bucket_bytes=25e6,
        bandwidth=1e10, latency=1e-5, overlap=1, scaling="weak",
    )  # fmt: skip
    assert alone == 1


@given(st.integers(1, 200), st.integers(1, 12))
def test_samples_of_a_rank_as_the_sampler_deals_them(samples, n):
    dealt = [[*DistributedSampler(range(samples), num_replicas=n, rank=r, seed=1)] for r in range(n)]
    each = p.samples_per_rank(samples=samples, ranks=n)
    assert all(len(d) == each for d in dealt)
    together = list(itertools.chain.from_iterable(dealt))
    assert set(together) == set(range(samples)) and len(together) - samples == n * each - samples


# ZeRO


@given(many, st.integers(1, 6), st.sampled_from([0, 1, 2, 3]), st.sampled_from([np.float64, np.float32]))
def test_traffic_of_each_stage_by_counting_its_collectives(n, size, stage, narrow):
    """Gradients are scattered, weights gathered: at stage 3 before the forward pass and before the backward pass."""
    network = Network(1e9, 0.0, sent=dict.fromkeys(range(n), 0))
    gradients, weights = split(numbers(n, n * size), n), split(numbers(n, n * size, seed=1), n)
    weights = {rank: [c.astype(narrow) for c in chunks] for rank, chunks in weights.items()}
    if stage == 3:
        all_gather(network, range(n), weights)
        all_gather(network, range(n), weights)
        reduce_scatter(network, range(n), gradients)
    else:
        reduce_scatter(network, range(n), gradients)
        all_gather(network, range(n), gradients if stage == 0 else weights)
    width = np.dtype(narrow).itemsize
    ours = p.zero_traffic(
        parameters=float(n * size), bytes_per_parameter=width, bytes_per_gradient=8, ranks=n, zero_stage=stage
    )
    assert all(sent == pytest.approx(ours) for sent in network.sent.values())


@pytest.mark.parametrize("convention", ["16 bytes", "18 bytes", "fp32"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("tensor", "pipeline", "data"), [(1, 1, 1), (2, 3, 4), (8, 1, 2), (1, 4, 6)])
def test_state_of_a_device_by_handing_out_every_parameter(tensor, pipeline, data, stage, convention):
    """Each parameter belongs to a tensor rank of a stage; weights, gradients and Adam's state to one replica or all."""
    weight, gradient, optimizer = {"16 bytes": (2, 2, 12), "18 bytes": (2, 4, 12), "fp32": (4, 4, 8)}[convention]
    held = dict.fromkeys(itertools.product(range(tensor), range(pipeline), range(data)), 0)
    count = 5 * tensor * pipeline * data
    for number in range(count):
        place, owner = divmod(number // data, pipeline), number % data
        for size, first in ((weight, 3), (gradient, 2), (optimizer, 1)):
            for replica in [owner] if stage >= first else range(data):
                held[place[0] % tensor, place[1], replica] += size
    assert len(set(held.values())) == 1
    ours = p.layout_state_bytes(
        parameters=float(count),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data,
        zero_stage=stage,
        convention=convention,
    )
    assert ours == pytest.approx(held[0, 0, 0])


# Tensor parallelism


class Split:
    """Ranks of tensor parallelism in one process, with a count of the bytes that they all-reduce."""

    def __init__(self, ranks):
        self.ranks, self.messages = ranks, []

    def enter(self, x):
        """The same input on all ranks: nothing forward, an all-reduce of its gradient backward."""

        class Enter(torch.autograd.Function):
            @staticmethod
            def forward(ctx, whole):
                return tuple(whole.clone() for _ in range(self.ranks))

            @staticmethod
            def backward(ctx, *gradients):
                self.messages.append(gradients[0].nbytes)
                return sum(gradients)

        return Enter.apply(x)

    def leave(self, partial):
        """Partial results of all ranks: an all-reduce forward, nothing backward."""
        self.messages.append(partial[0].nbytes)
        return sum(partial)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5))
def test_traffic_of_tensor_parallelism_by_splitting_a_block(n, layers, batch, length):
    """Heads and the MLP's inner width over ranks, as Megatron-LM splits them; results and gradients stay the same."""
    torch.manual_seed(0)
    hidden, heads = 16, 4
    size = hidden // heads
    x = torch.randn(batch, length, hidden, dtype=torch.float64, requires_grad=True)
    layer_weights = [
        {"qkv": torch.randn(3, heads, hidden, size), "out": torch.randn(heads, size, hidden)}
        | {"up": torch.randn(hidden, 4 * hidden), "down": torch.randn(4 * hidden, hidden)}
        for _ in range(layers)
    ]
    layer_weights = [{k: (w / 8).double() for k, w in ws.items()} for ws in layer_weights]

    def attention(x, qkv, out):
        q, k, v = torch.einsum("bsh,cahd->cbasd", x, qkv)
        return torch.einsum("basd,adh->bsh", F.scaled_dot_product_attention(q, k, v), out)

    def run(x, ranks):
        split = Split(ranks)
        for w in layer_weights:
            parts = range(ranks)
            own = [slice(r * heads // ranks, (r + 1) * heads // ranks) for r in parts]
            xs = split.enter(x)
            x = x + split.leave([attention(xs[r], w["qkv"][:, own[r]], w["out"][own[r]]) for r in parts])
            own = [slice(r * 4 * hidden // ranks, (r + 1) * 4 * hidden // ranks) for r in parts]
            xs = split.enter(x)
            x = x + split.leave([F.gelu(xs[r] @ w["up"][:, own[r]]) @ w["down"][own[r]] for r in parts])
        return x, split

    whole, _ = run(x, 1)
    (expected,) = torch.autograd.grad(whole.square().sum(), x)
    result, split = run(x, n)
    (gradient,) = torch.autograd.grad(result.square().sum(), x)
    assert torch.allclose(result, whole) and torch.allclose(gradient, expected)
    assert set(split.messages) == {x.nbytes}
    sent = sum(ring(n, 1, 1e9, 0.0)[0].sent[0] / (8 * n) * message for message in split.messages)
    ours = p.tensor_parallel_traffic(
        layers=layers,
        sequence_length=length,
        microbatch=batch,
        hidden_size=hidden,
        bytes_per_element=8,
        tensor_parallel=n,
    )
    assert ours == pytest.approx(sent)


# Pipelines


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B", "interleaved"])
@given(shapes, st.floats(0.1, 10), st.floats(0.1, 10))
def test_pipeline_schedules_by_executing_them(schedule, shape, forward, backward):
    stages, times_as_many, chunks = shape
    microbatches = stages * times_as_many
    if schedule != "interleaved":
        chunks = 1
        microbatches += times_as_many % 3  # any number
    if schedule == "interleaved" and chunks == 1:
        chunks = 2
    here = dict(stages=stages, microbatches=microbatches, chunks=chunks, schedule=schedule)
    ran = execute(schedule, stages, microbatches, chunks, forward, backward)
    ideal = microbatches * (forward + backward)
    idle = ran.time - ran.busy[0]
    fraction = p.pipeline_bubble_fraction(**here)
    assert ran.busy == pytest.approx([ideal] * stages)
    assert fraction == pytest.approx(idle / ideal, rel=1e-9, abs=1e-9)
    waiting = p.pipeline_bubble_time(bubble_fraction=fraction, busy_time=ideal)
    assert waiting == pytest.approx(idle, rel=1e-9, abs=1e-9)
    share = p.pipeline_idle_share(bubble_fraction=fraction)
    assert share == pytest.approx(idle / ran.time, rel=1e-9, abs=1e-12)
    assert p.pipeline_microbatches_in_flight(**here) == pytest.approx(max(ran.peak)) == pytest.approx(ran.peak[0])
    held = p.stage_activation_bytes(microbatch_bytes=3.0, microbatches_in_flight=ran.peak[0])
    assert held == pytest.approx(3 * max(ran.peak))
    if stages > 2:
        traffic = p.pipeline_traffic(
            microbatches=microbatches,
            sequence_length=7,
            microbatch=2,
            hidden_size=5,
            bytes_per_element=2,
            chunks=chunks,
        )
        assert traffic == ran.sent[1] * 7 * 2 * 5 * 2


@given(shapes, st.floats(1e12, 1e18), st.floats(1e9, 1e15), st.floats(0.1, 1), st.floats(0, 5), st.floats(0, 5))
def test_a_step_of_a_layout_by_executing_its_pipeline(shape, work, peak, used, tensor_time, exposed):
    stages, times_as_many, replicas = shape
    microbatches = stages * times_as_many
    devices = stages * replicas
    each = (work / (devices * peak * used) + tensor_time) / microbatches
    ran = execute("1F1B", stages, microbatches, 1, each / 3, 2 * each / 3)
    bubble = p.pipeline_bubble_fraction(stages=stages, microbatches=microbatches, chunks=1, schedule="1F1B")
    ours = p.layout_step_time(
        model_flops=work,
        devices=devices,
        peak_performance=peak,
        utilization=used,
        bubble_fraction=bubble,
        tensor_parallel_time=tensor_time,
        exposed_time=exposed,
    )
    assert math.isclose(ours, ran.time + exposed, rel_tol=1e-9)


@given(*[st.integers(1, 5)] * 4, st.integers(1, 4), st.integers(1, 6))
def test_replicas_and_their_microbatches_by_dealing_devices_and_sequences(t, c, pipeline, d, microbatch, each):
    """Ranks in the order tensor, context, pipeline, data; sequences to replicas in turn."""
    devices = t * c * pipeline * d
    replicas = {rank // (t * c * pipeline) for rank in range(devices)}
    found = p.data_parallel_ranks(devices=devices, tensor_parallel=t, pipeline_parallel=pipeline, context_parallel=c)
    assert found == len(replicas)
    batch = microbatch * d * each
    dealt = [len(range(replica, batch // microbatch, d)) for replica in range(d)]
    ours = p.pipeline_microbatches(batch=batch, microbatch=microbatch, data_parallel=d)
    assert dealt == [ours] * d
    layout = dict(tensor_parallel=t, context_parallel=c, pipeline_parallel=pipeline, data_parallel=d)
    assert p.layout_devices(**layout) == len({*itertools.product(range(t), range(c), range(pipeline), range(d))})
    assert p.layout_batch(microbatch=microbatch, microbatches=each, data_parallel=d) == microbatch * sum(dealt)


# How large a batch


@pytest.mark.parametrize(("small", "ratio"), [(1, 8), (4, 2), (16, 4)])
def test_noise_scale_of_gradients_with_a_known_covariance(small, ratio):
    rng = np.random.default_rng(1)
    mean, deviation = rng.normal(size=30) / 3, rng.uniform(0.2, 1.5, size=30)
    known = (deviation**2).sum() / (mean**2).sum()
    norms = {}
    for batch in (small, small * ratio):
        # the mean of `batch` samples
        draws = mean + rng.normal(size=(60_000, 30)) * deviation / math.sqrt(batch)
        norms[batch] = (draws**2).sum(1).mean()
    ours = p.gradient_noise_scale(
        small_batch=small,
        batch_ratio=ratio,
        small_norm_squared=norms[small],
        large_norm_squared=norms[small * ratio],
    )
    assert ours == pytest.approx(known, rel=0.05)


def test_noise_scale_of_a_model_by_every_gradient_of_every_sample():
    """Squared norms of all minibatches that can be drawn, with replacement, are exactly |G|² + S / b."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1).double(), torch.randn(4, 3).double(), torch.randn(4, 1).double()
    gradients = []
    for i in range(4):
        loss = F.mse_loss(model(x[i]), y[i])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])]))
    gradients = torch.stack(gradients)
    centre = gradients.mean(0)
    known = (gradients - centre).square().sum(1).mean() / centre.square().sum()
    norms = {
        batch: np.mean(
            [float(gradients[[*drawn]].mean(0).square().sum()) for drawn in itertools.product(range(4), repeat=batch)]
        )
        for batch in (2, 4)
    }
    ours = p.gradient_noise_scale(
        small_batch=2, batch_ratio=2, small_norm_squared=norms[2], large_norm_squared=norms[4]
    )
    assert ours == pytest.approx(float(known), rel=1e-9)


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e6))
def test_steps_and_samples_trade_on_a_hyperbola(batch, critical, steps):
    """(S / S_min − 1)(E / E_min − 1) = 1 with E = B S and B_crit = E_min / S_min: Kaplan et al. 2020, eq. 5.1."""
    s = p.training_steps(batch=batch, critical_batch=critical, minimum_steps=steps)
    e = p.training_samples(batch=batch, critical_batch=critical, minimum_samples=critical * steps)
    assert e == pytest.approx(batch * s)
    assert (s / steps - 1) * (e / (critical * steps) - 1) == pytest.approx(1, rel=1e-6)


@given(st.floats(0.5, 10))
def test_critical_batch_falls_as_a_power_of_the_loss(loss):
    """On logarithmic axes a straight line with the slope −1/α through B* at a loss of 1."""
    here, ten = (p.critical_batch_size(loss=value, batch_scale=2e8, batch_exponent=0.25) for value in (loss, 10 * loss))
    assert here / ten == pytest.approx(10**4)
    assert p.critical_batch_size(loss=1, batch_scale=2e8, batch_exponent=0.25) == 2e8


# Failures


@pytest.mark.parametrize("devices", [1, 8, 100])
def test_the_first_of_many_devices_to_fail(devices):
    lifetimes = np.random.default_rng(2).exponential(1000.0, size=(40_000, devices))
    ours = p.cluster_failure_interval(device_interval=1000, devices=devices)
    assert lifetimes.min(1).mean() == pytest.approx(ours, rel=0.03)


@pytest.mark.parametrize("ratio", [1e-6, 1e-5, 1e-4])
def test_the_best_interval_by_the_exact_expected_time(ratio):
    """Exponential failures, also while writing: the exact expected time of useful time, and scipy's minimum of it."""
    failure, write = 1.0, ratio

    def expected(log_interval):
        interval = math.exp(log_interval)
        return failure * math.expm1((interval + write) / failure) / interval

    best = math.exp(minimize_scalar(expected, bounds=(math.log(write), 0), method="bounded").x)
    ours = p.checkpoint_interval(checkpoint_time=write, failure_interval=failure)
    assert ours == pytest.approx(best, rel=1.5 * math.sqrt(ratio) + 1e-3)


@pytest.mark.parametrize("interval", [0.01, 0.04, 0.15])
def test_loss_to_checkpoints_and_failures_by_running_them(interval):
    """Training in sections that a failure sends back to the last checkpoint, with time for a restart."""
    rng = np.random.default_rng(3)
    write, restart, failure, sections = 0.001, 0.005, 1.0, 40_000
    clock, next_failure = 0.0, rng.exponential(failure)
    for _ in range(sections):
        while next_failure < clock + interval + write:
            clock = next_failure + restart
            next_failure = clock + rng.exponential(failure)
        clock += interval + write
    lost = clock / (sections * interval) - 1
    ours = p.checkpoint_loss(interval=interval, checkpoint_time=write, failure_interval=failure, restart_time=restart)
    # To first order: the square of the loss is neglected.
    assert ours == pytest.approx(lost, abs=lost**2 + 0.1 * ours)


@given(st.integers(0, 1000), st.integers(1, 100))
def test_repeated_steps_by_playing_a_failure(failed, every):
    kept = 0
    for step in range(1, failed + 1):
        if step % every == 0:
            kept = step
    assert p.steps_repeated(failed_step=failed, checkpoint_steps=every) == failed - kept
