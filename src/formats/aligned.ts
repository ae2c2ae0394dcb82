/**
 * Views bytes as little-endian words, copying them only where they are not aligned.
 *
 * @param bytes The bytes; a rest shorter than one word is left out.
 * @param type The typed array to view them as.
 * @returns The words; they share memory with `bytes` where the alignment allows it.
 */
export function alignedView<T>(
  bytes: Uint8Array,
  type: { readonly BYTES_PER_ELEMENT: number; new (buffer: ArrayBufferLike, offset: number, length: number): T },
): T {
  const width = type.BYTES_PER_ELEMENT;
  const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  return new type(aligned.buffer, aligned.byteOffset, Math.floor(aligned.length / width));
}
