"""Ed25519 (RFC 8032 §5.1) by the standard library alone, written from the RFC's formulas: a second opinion.

It is slow, and leaks secrets through time: for tests. `verify` is the rule of `animus.signing` said in another way:
small order is found by multiplication by 8, and both points are decoded before anything is compared.
"""

from functools import lru_cache
from hashlib import sha512

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z

IDENTITY: Point = (0, 1, 1, 0)


def add(left: Point, right: Point) -> Point:
    """The sum of two points, equal ones too: the formula is complete."""
    x1, y1, z1, t1 = left
    x2, y2, z2, t2 = right
    a, b = (y1 - x1) * (y2 - x2), (y1 + x1) * (y2 + x2)
    c, d = 2 * t1 * t2 % P * D, 2 * z1 * z2
    e, f, g, h = (b - a) % P, (d - c) % P, (d + c) % P, (b + a) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar: int, point: Point) -> Point:
    """A multiple of a point."""
    result = IDENTITY
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = double(point)
        scalar >>= 1
    return result


@lru_cache(maxsize=4096)  # of the base point and of a test's keys, which are multiplied again and again
def double(point: Point) -> Point:
    """Twice a point."""
    return add(point, point)


def negate(point: Point) -> Point:
    """The point on the other side."""
    return -point[0] % P, point[1], point[2], -point[3] % P


def encode(point: Point) -> bytes:
    """The one spelling of a point."""
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """The point of a spelling, or nothing for what is no point or another spelling of one."""
    if len(data) != 32:
        return None
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if y >= P:
        return None
    return at(y, sign)


def at(y: int, sign: int) -> Point | None:
    """The point with a y, and the x with this lowest bit."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def is_small(point: Point) -> bool:
    """Whether the order of a point divides 8."""
    return encode(multiply(8, point)) == encode(IDENTITY)


def base() -> Point:
    """The base point: y is 4/5, x is even."""
    point = at(4 * pow(5, -1, P) % P, 0)
    assert point is not None
    return point


BASE = base()


def challenge(r: bytes, public_key: bytes, message: bytes) -> int:
    """k, reduced: for a key with a part of small order it matters that it is."""
    return int.from_bytes(sha512(r + public_key + message).digest(), "little") % L


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is good."""
    if len(signature) != 64:
        return False
    key, r, s = decode(public_key), decode(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or r is None or is_small(key) or is_small(r) or s >= L:
        return False
    k = challenge(signature[:32], public_key, message)
    return encode(add(multiply(s, BASE), multiply(k, negate(key)))) == encode(r)


def secret(seed: bytes) -> tuple[int, bytes]:
    """The scalar of a seed, and what nonces are made from."""
    half = bytearray(sha512(seed).digest())
    half[0] &= 248
    half[31] = half[31] & 127 | 64
    return int.from_bytes(half[:32], "little"), bytes(half[32:])


def public_key(seed: bytes) -> bytes:
    """The public key of a seed."""
    return encode(multiply(secret(seed)[0], BASE))


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature of a message."""
    scalar, prefix = secret(seed)
    key = encode(multiply(scalar, BASE))
    nonce = int.from_bytes(sha512(prefix + message).digest(), "little") % L
    r = encode(multiply(nonce, BASE))
    return r + ((nonce + challenge(r, key, message) * scalar) % L).to_bytes(32, "little")
