"""full_precision against autocast: what runs inside is float32, whatever the loop around it chose."""

import pytest
import torch

from sagecache.geometry.precision import full_precision


@full_precision
def product(a, b, scale=1.0):
    """Autocast would run this in half precision, and say so by the type of the result."""
    return scale * (a @ b)


def matrices(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [200 * torch.rand(4, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


def test_autocast_is_off_inside_and_on_again_outside():
    a, b = matrices()
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16, "otherwise the next line shows nothing"
        inside = product(a, b)
        assert torch.is_autocast_enabled("cpu") and (a @ b).dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, a @ b, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_arguments_are_raised_by_position_and_by_name(dtype):
    a, b = matrices(dtype)
    expected = 0.5 * (a.double() @ b.double())
    for result in (product(a, b, scale=0.5), product(a=a, b=b, scale=torch.tensor(0.5, dtype=dtype))):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_other_types_pass_as_they_are(dtype):
    value = torch.ones(2, dtype=dtype)
    assert full_precision(lambda x: x)(value) is value


def test_what_is_no_tensor_passes_too_and_a_call_without_tensors_works():
    assert full_precision(lambda *args, **kwargs: (args, kwargs))("a", 2, b=None) == (("a", 2), {"b": None})


def test_gradients_flow_through_the_raised_argument():
    a, b = matrices(torch.bfloat16)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        product(a, b).sum().backward()
    assert a.grad.dtype == torch.bfloat16
    torch.testing.assert_close(a.grad.float(), b.float().sum(1).expand(4, 4), rtol=1e-2, atol=0)


def test_the_wrapped_function_keeps_its_name_and_words():
    assert product.__name__ == "product" and product.__doc__.startswith("Autocast would")
