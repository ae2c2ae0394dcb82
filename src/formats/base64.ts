/** Bytes that become one call's arguments: engines cap their number. */
const CHUNK = 0x2000;

/**
 * Encodes bytes as base64.
 *
 * @param bytes The bytes.
 * @returns Four characters for every three bytes.
 */
export function encodeBase64(bytes: Uint8Array): string {
  const parts: string[] = [];
  for (let at = 0; at < bytes.length; at += CHUNK) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + CHUNK)));
  }
  return btoa(parts.join(""));
}

/**
 * Decodes base64.
 *
 * @param text The text.
 * @returns The bytes, or null for a text that is none.
 */
export function decodeBase64(text: string): Uint8Array | null {
  try {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    return bytes;
  } catch {
    return null;
  }
}
