import { firstRows, multiply, multiplyTransposed, orthogonalize, scale, stackRows, zeros } from "./linear_algebra.ts";
import { RandomStream } from "./random.ts";
import { type Factors, productNorm, productVectors } from "./svd.ts";

const OVERSAMPLING = 10;
const POWER_ITERATIONS = 2;

/**
 * Lowers the rank of a product B A of many more columns: by the randomised range finder of Halko, Martinsson and Tropp
 * (2011), in float64, as Jacobi rotations take time that grows with the cube of the rank.
 *
 * @param factors B and A.
 * @param rank The rank wanted.
 * @returns Factors of that rank, and ‖wanted − got‖ / ‖wanted‖.
 */
export function truncateProduct(factors: Factors, rank: number): { readonly factors: Factors; readonly error: number } {
  const { a, b } = factors;
  const count = Math.min(rank + OVERSAMPLING, a.columns, b.columns, a.rows);
  const random = new RandomStream(0, "range");
  let x = zeros(count, a.columns);
  for (let i = 0; i < x.values.length; i++) x.values[i] = random.normal();
  let q = x;
  for (let iteration = 0; iteration <= POWER_ITERATIONS; iteration++) {
    q = orthogonalize(multiply(multiplyTransposed(x, a), b)).q;
    x = multiply(multiplyTransposed(q, b), a);
    if (iteration < POWER_ITERATIONS) x = orthogonalize(x).q;
  }
  const { left, right } = productVectors({ a: x, b: q });
  const kept = Math.min(rank, left.rows);
  const got = { a: firstRows(right, kept), b: firstRows(left, kept) };
  const minus = scale(got.a, -1);
  const difference = productNorm({
    a: stackRows([a, minus], a.columns),
    b: stackRows([b, got.b], b.columns),
  });
  return { factors: got, error: difference === 0 ? 0 : difference / productNorm(factors) };
}
