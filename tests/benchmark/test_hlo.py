import pytest

from jaxattn.benchmark.hlo import count

PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (x: f32[6,5], y: f32[5,7]) -> f32[6,7] {
  %x = f32[6,5]{1,0} parameter(0)
  %y = f32[5,7]{1,0} parameter(1)
  ROOT %dot = f32[6,7]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[6,5])) -> (s32[], f32[6,5]) {
  %state = (s32[], f32[6,5]{1,0}) parameter(0)
  INSIDE
  ROOT %next = (s32[], f32[6,5]{1,0}) tuple(%state)
}

ENTRY %main (x: f32[6,5]) -> f32[6,5] {
  %x.1 = f32[6,5]{1,0} parameter(0)
  %loop = (s32[], f32[6,5]{1,0}) while(%x.1), condition=%add, body=%body, backend_config={STEPS"other":{}}
  OUTSIDE
}
"""
KNOWN = '"known_trip_count":{"n":"3"},'
PRODUCT = "%p = f32[6,7]{1,0} fusion(%x, %y), kind=kOutput, calls=%fused"


def program(outside="", inside="", steps=KNOWN):
    return PROGRAM.replace("OUTSIDE", outside).replace("INSIDE", inside).replace("STEPS", steps)


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        # 100 numbers of 4 bytes among n devices
        ("f32[100]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", "all-reduce", 600),
        ("f32[100]{0} all-reduce(%x), replica_groups={}, to_apply=%add", "all-reduce", 700),
        ("f32[100]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add", "all-reduce", 0),
        ("f32[100]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", "all-gather", 300),
        ("f32[100]{0} all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", "all-gather", 200),
        ("f32[25]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}", "reduce-scatter", 300),
        ("f32[25]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'a', 'b'}", "reduce-scatter", 700),
        ("f32[25]{0} reduce-scatter(%x), replica_groups=mesh['a'=8] {'a':(1)4}", "reduce-scatter", 300),
        ("(bf16[50]{0}, /*index=1*/bf16[2,25]{1,0}) all-to-all(%x, %x), replica_groups={{0,1}}", "all-to-all", 100),
        ("f32[100]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 400),
        ("pred[100]{0} collective-permute(%x), source_target_pairs={{0,1}}", "collective-permute", 100),
        ("f32[100]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}", "collective-permute", 0),
    ],
)
def test_bytes_sent_are_those_of_ring_algorithms(line, kind, sent):
    assert count(program(f"ROOT %c = {line}")).sent == {kind: sent}


def test_a_loop_counts_as_often_as_it_runs():
    permute = "%c = f32[100]{0} collective-permute(%x), source_target_pairs={{0,1}}"
    counts = count(program(f"{permute}\n  {PRODUCT}", f"{permute}\n  {PRODUCT}"))
    assert counts.bytes_sent == (1 + 3) * 400
    assert counts.operations == (1 + 3) * 2 * 6 * 7 * 5


def test_of_a_conditional_the_largest_branch_counts():
    choice = "%c = f32[6,7]{1,0} conditional(%i, %x, %x), branch_computations={%add, %fused}"
    assert count(program(choice)).operations == 2 * 6 * 7 * 5
    choice = "%c = f32[6,7]{1,0} conditional(%i, %x, %x), true_computation=%fused, false_computation=%add"
    assert count(program(choice)).operations == 2 * 6 * 7 * 5


def test_products_with_batch_axes_are_attentions_and_do_not_count():
    attention = "%d = f32[2,3,3]{2,1,0} dot(%x, %x), lhs_batch_dims={0}, lhs_contracting_dims={2}"
    assert count(program(attention)).operations == 0


def test_what_cannot_be_counted_is_refused():
    permute = "%c = f32[100]{0} collective-permute(%x), source_target_pairs={{0,1}}"
    with pytest.raises(ValueError, match="loop whose number of steps is not known"):
        count(program(inside=permute, steps=""))
    assert count(program(inside=PRODUCT, steps="")).operations == 0
    with pytest.raises(ValueError, match="compile for CPUs"):
        count(program("%c = (f32[100]{0}, f32[100]{0}) all-gather-start(%x), replica_groups={}"))
    with pytest.raises(ValueError, match="devices of a collective are not known"):
        count(program("%c = f32[100]{0} all-gather(%x), dimensions={0}"))
