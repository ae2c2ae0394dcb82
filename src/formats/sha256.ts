/**
 * Digests bytes.
 *
 * @param bytes The bytes.
 * @returns Their sha256, 32 bytes.
 */
export async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
}

/**
 * Writes bytes in hexadecimal.
 *
 * @param bytes The bytes.
 * @returns Two lower-case digits for each.
 */
export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
