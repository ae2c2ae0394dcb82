/** A stream of random numbers that a seed and a name decide, the same in every runtime (sfc32 of PractRand). */
export class RandomStream {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /** Starts the stream of a whole-number seed and a name. */
  constructor(seed: number, name: string) {
    this.#a = hash(name);
    this.#b = seed | 0;
    this.#c = Math.floor(seed / 2 ** 32) | 0;
    for (let i = 0; i < 12; i++) this.#next();
  }

  /** Uniform from 0 to below 1, in steps of 2^-24: exact in 32-bit floats. */
  uniform(): number {
    return (this.#next() >>> 8) / 2 ** 24;
  }

  /** Normal with mean 0 and variance 1, by Box and Muller. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  #next(): number {
    const sum = (this.#a + this.#b + this.#counter++) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum | 0;
    return sum;
  }
}

// FNV-1a over UTF-16 units.
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value | 0;
}
