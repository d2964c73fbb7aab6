/** About the connection to the endpoint, its encoding there, one person, or for publishers only. */
const notForCallers =
  /^(connection|keep-alive|content-length|content-encoding|transfer-encoding|trailer|upgrade|date|set-cookie|turnout-.*)$/;

/** What of an endpoint's headers goes on to who called a proxy, now or when it asks again. */
export function headersForCallers(headers: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !notForCallers.test(name.toLowerCase())));
}
