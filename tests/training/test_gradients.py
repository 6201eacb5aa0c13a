from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.heads import classifier
from tests.training.test_loop import kinds, run
from trainer.optim import Clipping, Gradients, Penalty


def with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((4, 3), (4,), (2, 4))]
    for parameter in parameters[:2]:  # the last one has none
        parameter.grad = scale * torch.randn(parameter.shape, generator=draw)
    return parameters


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_norm_of_all_gradients_is_clipped_as_torch_does_it(scale: float) -> None:
    ours, theirs = with_gradients(scale), with_gradients(scale)
    Gradients(ours, Penalty(), Clipping(global_norm=0.5)).settle()
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert all(torch.equal(left, right) for left, right in zip(gradients(ours), gradients(theirs), strict=True))


def test_the_norm_of_each_parameters_gradient_is_clipped() -> None:
    ours, theirs = with_gradients(), with_gradients()
    Gradients(ours, Penalty(), Clipping(norm=0.5)).settle()
    for parameter in theirs[:2]:
        torch.nn.utils.clip_grad_norm_(parameter, 0.5)
    for left, right in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(left, right)


def test_each_value_is_clipped_as_torch_does_it() -> None:
    ours, theirs = with_gradients(), with_gradients()
    Gradients(ours, Penalty(), Clipping(value=0.3)).settle()
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    assert all(torch.equal(left, right) for left, right in zip(gradients(ours), gradients(theirs), strict=True))


def test_a_penalty_joins_the_gradient_as_if_the_loss_had_it_and_leaves_biases_free() -> None:
    penalty = Penalty(l1=0.3, l2=0.2)
    ours, theirs = with_gradients(), with_gradients()
    Gradients(ours, penalty).settle()
    weights = theirs[0]
    (0.3 * weights.abs().sum() + 0.2 * weights.square().sum()).backward()
    torch.testing.assert_close(gradients(ours), gradients(theirs))
    both = torch.cat([theirs[0].detach().flatten(), theirs[2].detach().flatten()])
    expected = 0.3 * both.abs().sum() + 0.2 * both.square().sum()
    assert penalty.value(theirs).item() == pytest.approx(expected.item())


def test_the_penalty_is_clipped_with_the_gradient() -> None:
    parameters = with_gradients()
    Gradients(parameters, Penalty(l2=1e4), Clipping(global_norm=1.0)).settle()
    assert torch.linalg.vector_norm(torch.cat([each.flatten() for each in gradients(parameters)])) <= 1.0 + 1e-6


def test_nothing_happens_where_nothing_is_asked_and_without_gradients() -> None:
    ours, before = with_gradients(), gradients(with_gradients())
    Gradients(ours, Penalty()).settle()
    assert all(torch.equal(left, right) for left, right in zip(gradients(ours), before, strict=True))
    Gradients([nn.Parameter(torch.ones(2))], Penalty(l2=1.0), Clipping(0.5, 0.5, 0.5)).settle()


def test_a_run_is_held_back_by_its_penalty_and_its_clipping() -> None:
    def norm(**changes: object) -> float:
        model = classifier()
        run(model, kinds(100), epochs=30, **changes)
        return model.decoder("kind").scores.weight.norm().item()  # type: ignore[union-attr, operator, no-any-return]

    free = norm()
    assert norm(penalty=Penalty(l2=0.5)) < 0.5 * free
    assert norm(penalty=Penalty(l1=0.1)) < 0.8 * free
    assert norm(clipping=Clipping(global_norm=1e-12)) < 0.9 * free  # Adam's epsilon is larger than such gradients


def test_the_norm_is_told_as_it_was_before_it_is_clipped() -> None:
    parameters = with_gradients()
    expected = torch.linalg.vector_norm(torch.cat([each.flatten() for each in gradients(parameters)]))
    found = Gradients(parameters, Penalty(), Clipping(global_norm=1e-3)).settle()
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert Gradients(with_gradients(), Penalty()).settle() is None
    measured = Gradients(with_gradients(), Penalty(), measured=True).settle()
    assert measured is not None
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("clipping", [Clipping(global_norm=0.5), Clipping(norm=0.5)])
def test_gradients_whose_rows_are_shared_out_are_clipped_by_the_norm_of_the_whole(clipping: Clipping) -> None:
    whole = with_gradients()
    expected = Gradients(whole, Penalty(), clipping, measured=True).settle()
    assert expected is not None

    def own(rank: int) -> list[nn.Parameter]:
        """Of two processes: two rows each of the first parameter, all of the others."""
        parameters = with_gradients()
        part = nn.Parameter(parameters[0].detach()[2 * rank : 2 * rank + 2])
        gradient = parameters[0].grad
        assert gradient is not None
        part.grad = gradient[2 * rank : 2 * rank + 2].clone()
        return [part, *parameters[1:]]

    shares = [own(0), own(1)]
    squares = torch.stack([torch.stack([gradients(share)[0].square().sum()]) for share in shares]).sum(0)
    for share in shares:
        settled = Gradients(share, Penalty(), clipping, sharded=share[:1], total=lambda _: squares, measured=True)
        found = settled.settle()
        assert found is not None
        torch.testing.assert_close(found, expected)
    joined = torch.cat([gradients(share)[0] for share in shares])
    torch.testing.assert_close(joined, gradients(whole)[0])
    torch.testing.assert_close(gradients(shares[1])[1], gradients(whole)[1])
